"""The plots, each with its pools of templates (phrases.py explains the slots).

In a plot with PROBLEM_BEATS, a problem or a wish comes up (problem), the companion hears of it (tell), they
try something (attempt), something changes (turn), and the problem is solved (solve). The pool "hook" tells
the problem first, for a story that begins in the middle. The other plots have beats of their own.
"""

from typing import NamedTuple


class Plot(NamedTuple):
    name: str
    use: str  # a letter of world.OBJECTS, or "skill" or "food"
    beats: tuple[tuple[str, ...], ...]  # each paragraph's pools; a pool with "?" is optional
    pools: dict[str, tuple[str, ...]]
    others: str = "friend family"
    hook: bool = True
    kept: bool = True  # whether the hero has the object at the end


PROBLEM_BEATS = (
    ("intro", "own"),
    ("arrive", "early"),
    ("problem", "sad?"),
    ("ask?", "tell"),
    ("offer?", "attempt?", "turn"),
    ("solve", "glad?", "reply?"),
    ("end", "moral?"),
)

LOST = Plot(
    "lost",
    "l",
    PROBLEM_BEATS,
    {
        "hook": (
            '"$oh! {Where is my $adj $o|My $adj $o is {gone|lost|not here}|I have lost my $adj $o|I cannot '
            'find my $adj $o}!" $Ncried.',
            "$Ns $adj $o was {gone|lost|nowhere to be seen|missing}. {$N looked {left and right|up and down|"
            "here and there}, but it was not there.|It was {not here and not there|nowhere}.|$N {felt|was} "
            "$sad.}",
        ),
        "problem": (
            "{But when|When|As soon as} $n {looked {down|around|up|again}|turned around|opened $his eyes|"
            "stopped to rest|wanted to play}, $O was {gone|not there|nowhere to be seen|missing}.",
            "$M {played|ran|danced|jumped} {all over|around} the $p{ for {hours|a long time}|}, and $sudden "
            "$O was {gone|lost|missing|nowhere to be seen}.",
            "$M {put|set|laid} $O down {for a {minute|moment}|to rest} {by a tree|on a bench|in the grass|"
            "on a stone|near a bush|by the path}. When $n {came back|looked again}, it was {gone|not there|"
            "missing|nowhere to be seen}.",
            "While $n {picked {flowers|berries}|watched a bug|looked at the {sky|clouds}|ran after a leaf|"
            "sang a song|jumped about}, $O {fell down|slipped away|dropped {somewhere|into the grass}|was "
            "left behind}, and {$sudden|then} it was {gone|lost|nowhere to be seen}.",
            "Somewhere $at_p, $n {dropped|lost} $O{ and did not {see|hear|feel} it|}.",
            "{Later|After some games|When it was time to rest}, $N {reached for|felt for|looked for} $O. "
            "{It was {gone|missing}.|Nothing was there. $X was {gone|missing}.}",
            "$N {climbed|crawled|rolled|chased a {bug|leaf|shadow}} {here and there|up and down|round and "
            "round} $at_p. {When that was done|At the end of it}, $O was {gone|lost|missing}.",
        ),
        "tell": (
            '"{$well}I {{have |}lost my $o|cannot find my $o|had my $o, and now it is gone}," $Nsaid{ '
            '$sadly|}. "{It is $adj|I looked everywhere|It was right here|It must be somewhere|I only '
            'looked away for a {minute|moment}|I want it back}."',
            "{$lead}$N {told $S|said} that $O was {lost|gone|missing}{, and $S was sorry to hear it|}.",
            '"$well{It is|It is about} my {$adj |}$o," $Nsaid{ $sadly|}. "{I lost it|It is {gone|lost}|I '
            'cannot find it} {somewhere $at_p|$at_p|and I looked everywhere}."',
            '"{Have you seen|Did you see} my {$adj |}$o?" $Nasked{ $sadly|}. "{It is lost|It is gone|I lost '
            'it} {since this $time|and I miss it|and I do not know where}."',
            "{With|In} {a small|a low|a shaky} voice, $N {told $S about|spoke of} the {lost|missing} $o.",
        ),
        "attempt": (
            "{$lead}$they looked {all over the $p|everywhere $at_p|{here|high} and {there|low}}. {$X was "
            "not $spot|There was no $o $spot}{ or $spot|}.",
            "{First |}$they $looked $spot{ and $spot|}, but {$X was not there|there was no $o|$they {saw|"
            "found} {only leaves|nothing|only a {stone|stick}|nothing but {grass|dust}}}.",
            "{$lead}$S $looked $spot, and $N $looked $spot. {No $o!|$X was not there.|There was no $o.|"
            "Nothing!|$they did not see {it|$X}.}",
            "From {bush to bush|tree to tree|stone to stone}, $they {looked|peeked|peered} all {over|"
            "around} the $p, but $X was {not there|not to be seen|still missing}.",
            "{$lead}$S {went left|began $spot}, and $N {went right|began $spot}. {Neither found|Nobody "
            "found|No one found} $X{ there| {yet|at first}|}.",
        ),
        "turn": (
            "$sudden $S {saw|spotted|noticed} {something $adj|a bit of something $adj|something} $spot.",
            '"{Wait|Look|Look there|Over there|Stop}! {What is that|Is that your $o|I see something}{ $spot|'
            '}?" $Scried.',
            "$soon $S {pointed|called out and pointed|ran to a place} $spot. Something $adj was {there|in "
            "the grass}.",
            "{Then|But then} {a {little|small} wind|the light|a bug|a leaf} {moved|came|fell}, and $S {saw|"
            "noticed|spotted} something {$adj |}$spot.",
            "{$lead}$S {went down on hands and knees|looked a second time|did not give up|looked once "
            "more}. {What was that|Was something} $spot?",
        ),
        "solve": (
            "It was $X! $S {picked {it up|up $X}|pulled out $X|held up $X|ran to get it} and gave {it|$X} "
            "{back |}to $Nm.",
            "{$lead}$they {had found|had found, at last,|found} {$X|$X}{ {at last|after all|again}|}! {It "
            "was a little dusty, but fine.|Not a thing was wrong with it.|It was {safe|fine}.|It had been "
            "there {all the time|all along}.}",
            '"$well{Here it is|I found it|I found your $o|Here is your $o}!" $Ssaid and {held up $X|gave $X '
            "to $Nm|put $X in $his hands}.",
            "There {was|lay} $X, {safe|half hidden|a little dusty|deep in the grass}! $N {had found {it|$X}|"
            "had {it|$X} back}.",
            "{Yes, it was|It really was|There was no doubt, it was} $X! $S {ran|hurried|rushed|went} and "
            "{gave|brought} it {back |}to $Nm.",
            "{$lead}$N {ran|hurried|rushed} {over|there} and {picked up|hugged|held up} $X. It was {found|"
            "not lost any more}{ at last|}!",
        ),
    },
)

STUCK = Plot(
    "stuck",
    "u",
    PROBLEM_BEATS,
    {
        "hook": (
            '"$oh! My $adj $o is {stuck|caught} {in a tree|up there|in the branches}!" $Ncried.',
            "$Ns $adj $o was {stuck|caught} {high |}{up |}in a {tall|big} tree. {$N could not reach it.|It "
            "would not come down.|$N {felt|was} $sad.}",
        ),
        "problem": (
            "$sudden {the wind|a {strong|big} wind|a puff of wind} {took|picked up|lifted|pulled|carried} "
            "$O {up and away|up|away|high up}, and it got {stuck|caught} {in a {tall|big|high} tree|in the "
            "top of a tree|on a {high|thin} branch}.",
            "$M {tossed|threw} $O {up |}{too high|high into the air|as high as $n could}. It {flew|went|"
            "sailed} into a {tall|big} tree and {got stuck|was stuck|stuck there}{ on a {high|thin} branch|"
            "}.",
            "{But then|Then|$sudden} $O was {}stuck {in a {tall|big|high} tree $at_p|high in a tree|on a "
            "{high|thin} branch, where no one could reach}.",
            "$N {ran|played|jumped|danced|hummed|sang} {around |}$at_p until {a {strong|big|sudden|wild} "
            "wind {came|blew|rose}|the wind {came|grew|woke up}}. {Up went $O|It {took|pulled at|lifted|"
            "grabbed} $O|$O {flew|sailed|went} {off|up}}, and {now|soon|then|a moment later} {it|$X} {was|"
            "got} {stuck|caught} {in a {tall|big|high|thick|bent} tree|on a {high|thin|long} branch|between "
            "two branches|among the leaves|in the top of a tree}.",
            "{One|A} {puff|gust|blow|breath} of wind, and {away|up|off} {went|flew|sailed} $O! {It came "
            "down|It ended|It landed|It stopped} {high |far up |}in a {tall|big|thick|old} tree, and {there "
            "it was|it got|it stayed} stuck.",
            "{High|Up} in {a tree $at_p|the branches|one of the trees|an old tree}, $O got {stuck|caught}. "
            "{The wind had done it.|{$N|$n} had {thrown|tossed} it too high.|{Nobody|No one} knew how.|It "
            "{swung|hung} there like a {leaf|nest}.}",
        ),
        "tell": (
            '"{$well}My $o is stuck {up there|in the tree|on a branch}," $Nsaid{ $sadly|}. "{I cannot reach '
            "it|It is too high for me|How can I get it down|It will not come down|I cannot climb so high}{, "
            '$S|}."',
            "{$lead}$N {pointed up|showed $S the tree|looked up} and {said|told $shim} that $O was stuck.",
            '"{Look up|Look there|Up there}," $Nsaid{ $sadly|}. "{Do you see my $o{ in the tree|}?|There is '
            'my $o, and it is stuck.}"',
            '"{Can you see|Do you see|See} {it|my $o} up there?" $Nasked{ $sadly|}. "{It is|My $o is} '
            'stuck{, and I am too {small|short}| in the tree|}."',
            "{$lead}$N {only pointed|raised a hand|nodded at the tree}. {High|Far} {above|up} {sat|hung} "
            "$X, {stuck|caught} {in|between} {the leaves|two branches}.",
        ),
        "attempt": (
            "{$lead}$they {shook|pushed|kicked|bumped|hugged and shook} the {tree|trunk} {hard|three times|"
            "again and again|with all $their strength|from {left|both sides}}, but {$X {stayed {up there|"
            "where it was|stuck}|did not {move|fall|come down}|{shook|moved} but did not fall}|only {leaves|"
            "a few leaves|{one|a} {leaf|twig}} fell down|all that {came|fell} down was {dust|a leaf|a "
            "twig}}.",
            "{First |}$S {threw|tossed|swung} a {stick|stone|shoe|twig|rope} {at the {branch|leaves}|up|"
            "into the tree|{twice|three times}}, but {it {missed|fell down again|came back}|$X {stayed|did "
            "not move|did not fall|only shook}}.",
            "{$lead}$M {jumped|jumped and jumped|stood on {a log|a stone|$his toes}|climbed on a stone}, "
            "but $n {could not reach {it|$X|the branch}|was too {small|short}}.",
            "{$lead}$N {tried to climb|climbed|wanted to climb} {up |}the {tree|trunk}, but {it was too "
            "{high|hard|smooth}|$n {slid down again|got tired and came down}|the {bark|wood} was too "
            "{smooth|hard}}. {$X {was still stuck|stayed where it was|did not move|stayed up}.|It was "
            "{still stuck|no use}.}",
            "{Hop, hop|Jump, jump|Up, up}! {$S jumped|$they {both |}jumped} {for|at} the {branch|$o}, but "
            "{it was too high|nobody could reach it|$X stayed up}.",
            "{$lead}$S {called|sang|shouted} to the {tree|wind|$o}{ to let go|}, but {of course |}$X "
            "{stayed|did not move|stayed stuck}.",
        ),
        "turn": (
            "$soon $S {had {an idea|a better idea|a clever idea|a plan}|knew what to do|began to {smile|"
            "think}}. $s {got|found|brought|fetched} a {long {stick|pole|rope|branch}|ladder|broom}.",
            '"{Wait here|I know|I have {an idea|a plan}|Hold on|Let me see}," $Ssaid. $s {came back with|'
            "went to get|got|found} a {long {stick|pole|rope|branch}|ladder|broom}.",
            "{Then |}$they {made a plan|thought {hard|again|for a while}|looked around}. {Over there|Near "
            "the {wall|gate|fence}} {was|lay} a {long {stick|pole|rope|branch}|ladder|broom}, and $S {took|"
            "got|brought} it.",
            "{By|Near|Behind} {the|a} {wall|gate|fence|hedge|house}, $S found a {long {stick|pole|rope|"
            "branch}|ladder|broom}. {It was {just right|long enough|what $they needed}.|}",
            '"{We need|What we need is|Let us find} {something long|a long arm|a {pole|ladder|broom}}{, $V|'
            '}," $Ssaid{ $skindly|}. {Soon|A minute later|In no time} $s {had|held} a {long {stick|pole|'
            "rope}|ladder|broom}.",
        ),
        "solve": (
            "{$lead}$S {reached up|reached {high|as high as $s could}|went up|stood on $shis toes} and "
            "{pushed|pulled|poked|hit|touched} {the branch|$X} $how. {Down came $X|$X {came down|fell down|"
            "was free|came loose and fell down}|{Out|Down} it came}!",
            "{With|After} {one|a {last|big|small|strong|good|quick}} {push|pull|poke|shake|tug}, $X {came "
            "down|fell {down|to the ground|at $Ns feet}|was free|came loose and fell down|slid {free|"
            "down}}{ {at last|with a {bump|plop}}|}.",
            "{$lead}$S {got|brought} $X {down|free} {$how|at the first try|after three tries} and {gave {it|"
            "$X} to $Nm|put {it|$X} in $his hands|held it out}. {It was {fine|safe|good as new}.|Nothing "
            "was wrong with it.|}",
            '"$well{Here it comes|Watch out|Catch it, $V|Catch}!" $Scried. $X {came down|fell down|was free '
            "and fell down}, {and $N {caught {it|$X}|picked up $X}|right into $Ns {arms|hands}}.",
            "{Little by little|Bit by bit|Inch by inch}, $S {pushed|pulled|poked|shook} the branch, and $X "
            "{came loose and fell|slid down|came down}{ {into $his arms|to the ground}|}.",
            "{Up|High} {went|rose} $Ss {arm|hand}, and {down|out} came $X! {Now it was free.|It was free{ "
            "at last| again}.}",
        ),
    },
)

BROKEN = Plot(
    "broken",
    "b",
    PROBLEM_BEATS,
    {
        "hook": (
            '"$oh! My $adj $o is broken!" $Ncried.',
            "$Ns $adj $o was broken. {{A|One} piece {lay|was} {here|on the ground}, and {another|the rest} "
            "{there|in the grass}.|$N {felt|was} $sad.|It {had|made} a {sad|funny|terrible} {crack|sound}.}",
        ),
        "problem": (
            "$sudden $n {tripped|slipped|fell} {over {a {stone|root|stick}|$his own feet}|on the {grass|"
            "path|steps}}, and $O {broke|hit {a stone|the ground} and broke}{ {in two|with a {crack|snap|"
            "crash}}|}.",
            "$M {was {too fast|not careful|in a hurry}|did not look|was looking at {a cloud|the sky}}, and "
            "{crash|bang|snap|crack}! $X {fell {down|to the ground|on a stone} and broke|broke{ in two|}}.",
            "{But |Then |}$O {fell|slipped|dropped} {out of $his {hands|arms}|to the ground|down} and broke "
            "{with a {loud|terrible|sad|small} {crack|snap|crash|noise}|into {two|three} pieces|in the "
            "middle}.",
            "{Crack|Snap|Crash|Bang}! {Something had happened to|Something was wrong with} $O. It was "
            "broken{, and {a|one} piece was {on the ground|in the grass|loose}|}.",
            "$at_p, $n {ran|jumped|played|danced|turned} too {fast|hard|wildly|far}, and $O {{fell|dropped} "
            "{down|to the ground} and |hit a {stone|wall|tree} and |}broke{ {in two|with a {crack|snap|"
            "crash}|into {two|three} pieces}|}.",
            "$N {wanted to {jump|run|turn}|turned|jumped} {over a {log|stone|root}|too fast|without "
            "looking}. {$X|$O} {hit|struck} {the ground|a {stone|wall|tree}} and broke{ {in two|with a "
            "{crack|snap|crash}}|}.",
        ),
        "tell": (
            '"{$well}My $o is broken," $Nsaid{ $sadly|}. "{I dropped it|I fell|I was not careful|It was {an '
            'accident|my own fault}|I do not know what to do}."',
            "{$lead}$N {showed $S the broken $o|held out the broken $o|{pointed to|looked at} the broken $o "
            "and {cried|sighed|said nothing}}.",
            '"{Look|See}, $S," $Nsaid{ $sadly|}. "{My $o broke|$X is broken|I broke my $o}{ {in two|when I '
            'fell|just now}|}."',
            '"{It is|It was} {all |}my {own |}fault," $Nsaid{ $sadly|}. "{I ran|I jumped|I was {too fast|'
            'not careful|in a hurry}|I did not look}, and {now |then |}$X {broke|is broken|was broken}."',
            "{One piece in each hand|With the broken $o in both arms|With wet eyes}, $N told {what had "
            "happened|how it happened|how it broke}.",
        ),
        "attempt": (
            "{$lead}$they {tried to|wanted to} {put the {pieces|parts} {back |}together|hold it together "
            "with {string|tape|mud|a leaf|a ribbon}|push the {pieces|parts} into place}, but {it did not "
            "{work|hold|help}|$X {fell apart|came apart} again|{one|a} {piece|part} {fell|came} off again}.",
            "{First |}$S {tied {a string|a ribbon|some grass} around $X|put some {tape|mud|string|sap} on "
            "{it|$X}|pushed the pieces together}, but {it did not {work|hold|help}|$X {fell apart|came "
            "apart} again}.",
            "{$lead}$M {tried|wanted} to fix {it|$X} with {string|tape|mud|a leaf|a {long |}ribbon|sap}, "
            "but {it did not {work|hold|help}|{it|that} was too hard|nothing {worked|helped}}. {$X was "
            "still broken.|It {was|stayed} broken.}",
            "{A little|Some|A lot of} {string|tape|mud|sap} {was tried|came first}, but {$X {fell apart|"
            "came apart} again|it did not {work|hold|help}}.",
            "{Push|Press|Hold} {here|it|this}, {push|press|hold|pull} there: $they {worked on $X|did all "
            "$they could|tried {three|five|ten} ways}{ for {an hour|a while|a long time}|}, but {the pieces "
            "{came|fell} apart{ again|}|nothing held{ for long|}|it {broke|came apart} again}.",
        ),
        "turn": (
            "$soon $S {had {an idea|a better idea|a plan}|knew what to do|remembered something}. $s {got|"
            "found|brought|fetched} {some |}{strong |good |}{glue|wire|nails|tools|thread}{ from {home|the "
            "house|a friend}|}.",
            '"{Wait here|I know|I have {an idea|a plan}|Hold on|Let me see}," $Ssaid. $s {came back with|'
            "went to get|got|found} {some |}{strong |good |}{glue|wire|nails|tools|thread}.",
            "{Then|So} $they {went to get|asked for|found|looked for} {some |}{strong |good |}{glue|wire|"
            'thread}, and $S {showed $him how to use it.|knew how to use it.|said, "{Now|This time} it will '
            'work."}',
            '"{We need|What we need is|Let us find} {some |}{strong |good |}{glue|wire|thread}," $Ssaid{ '
            "$skindly|}. {Soon|A minute later|In no time} $s {had|held|found} some.",
        ),
        "solve": (
            "{Together $they|$S} {fixed|mended} $X {$how|in no time|piece by piece}. {It was as good as "
            "new.|It looked {fine|good|even better} again.|It worked {again|well|even better}.|Now it was "
            "{strong|even better}.|}",
            "{$lead}$they worked {$how|for {an hour|a long time}|side by side|without a {break|rest}} until "
            "$X was {fixed|mended|whole again|as good as new}{ {at last|from end to end}|}.",
            "{Bit by bit|Piece by piece|With {care|skill}|After {an hour|some work}}, $S {fixed|mended} {it|"
            "$X}. $X was {whole again|as good as new|good again|{better|stronger} than before}.",
            '"$well{There|Done|Look|Now try it}, $V," $Ssaid. {$X was {fixed|mended|whole again|as good as '
            "new}|$s had {fixed|mended} $X}.",
            "{Drip, drip|Tap, tap|Turn, turn|Push, push}, and {soon|at last|before long} $X was {fixed|"
            "mended|whole again|as good as new}.",
            "{$lead}$N {held|turned} the pieces, and $S {did the rest|worked {$how|with care}}. {In the end|"
            "At last|Before {dark|dinner}} $X was {fixed|mended|whole again}.",
        ),
    },
)

DIRTY = Plot(
    "dirty",
    "d",
    PROBLEM_BEATS,
    {
        "hook": (
            '"$oh! My $adj $o is {so |all |very |}{dirty|muddy}!" $Ncried.',
            "$Ns $adj $o was {so |very |}{dirty|muddy}. {There was mud all over it.|It {was full of|smelled "
            "of} mud.|$N {felt|was} $sad.}",
        ),
        "problem": (
            "$sudden $O {fell|slipped|rolled|dropped} into {the mud|a {big |deep |}puddle|a patch of mud|"
            "some {deep|brown} mud}{ with a {splash|plop|splat}|}. {Now it was {very |all |}{dirty|muddy}.|"
            "It was {very |all |}{dirty|muddy}.}",
            "$M {slipped|tripped|fell} {on the {long |}grass|over a {stone|root}}, and $O {landed|fell|"
            "went} in {the mud|a {big |deep |}puddle|some {deep|brown} mud}. It was {so |very |all |}{dirty|"
            "muddy} {now|from top to bottom|all over}.",
            "There was {mud|deep mud|a patch of mud} $at_p. {Splash|Plop|Splat|Squish}! $O {fell|dropped|"
            "went|rolled|slid} {right |}into it and {was|got} {so |very |all |}{dirty|muddy}{ {all over|"
            "from top to bottom|on every side}|}.",
            "{Splash|Plop|Splat|Squish}! $O {landed|fell|was|sat} in {the|some} {deep |brown |}mud{ $at_p|"
            "}, and {now|soon|at once} it was {so |very |all |}{dirty|muddy}{ all over|}.",
            "{A|One} {slip|bump|wrong step}, and {down|off} went $O into {the mud|a {deep|big|brown} "
            "puddle}. How {dirty|muddy} it was{ now|}!",
            "$N did not see {the mud|the puddle|how soft the ground was}. {Oops|Whoops|Slip, slide}! {Now|"
            "Soon} $O was {dirty|muddy} {all over|on every side|from end to end}.",
        ),
        "tell": (
            '"{$well}My $o is {so |all |}dirty," $Nsaid{ $sadly|}. "{It fell in the mud|I dropped it|I '
            'slipped|I was not careful|It will never be clean|I do not know what to do}."',
            "{$lead}$N {showed $S the {dirty|muddy} $o|held out the {dirty|muddy} $o|{pointed to|looked at} "
            "the {dirty|muddy} $o and {cried|sighed|said nothing}}.",
            '"{Look|See}, $S," $Nsaid{ $sadly|}. "{My $o {fell in the mud|is full of mud|is all dirty}|'
            'There is mud on my $o}."',
            '"{Nobody|No one} {will like|can play with} this {dirty|muddy} $o," $Nsaid{ $sadly|}.',
            "{One hand full of mud|With muddy {hands|feet|shoes}}, $N {held up|showed $S} the dirty $o.",
        ),
        "attempt": (
            "{First |}$they {rubbed|wiped|dabbed} {it|$X} with {{dry |some |}leaves|{dry |some |}grass|a "
            "{leaf|rag|sock|sleeve}}, but {it did not {help|work}|the mud did not come off|$X {stayed|was "
            "still} {dirty|muddy}|{that|this} did {very little|no good}}.",
            "{$lead}$M {shook|rubbed|wiped|scratched} {it|$X} {hard|again and again|for a while|with both "
            "hands}, but {it did not {help|work}|the mud did not come off|$X {stayed|was still} {dirty|"
            "muddy}}.",
            "{$lead}$S {blew on it|rubbed at the mud|used a {leaf|rag|sock}}, but {it did not help|the mud "
            "did not come off|$X {stayed|was still} dirty}.",
            "{A|One} {big|long|strong} {shake|rub|wipe} did not help. The mud {stayed|was still} on $X.",
            "{Leaves|Dry grass|An old rag|A sock} {could not|did not} {help|clean it}, and $X was still "
            "{dirty|muddy}.",
        ),
        "turn": (
            "$soon $S {had {an idea|a better idea|a plan}|knew what to do|remembered something}. $s {got|"
            "found|brought|fetched} {{warm |clean |cold |some |}water and {some |}soap|soap and a {big |"
            "soft |}{brush|towel|rag}|a {brush|rag} and {warm |clean |cold |}water}.",
            '"{Wait here|I know|I have {an idea|a plan}|Hold on|Let me see|Just a minute}," $Ssaid. $s '
            "{came back with|went to get|got|found|brought} {{warm |clean |cold |some |}water and {some |"
            "}soap|soap and a {big |soft |}{brush|towel|rag}|a {brush|rag} and {warm |clean |cold |}water}.",
            '"$well{We need|Let us get|What we need is} {{warm |clean |cold |}water and {some |}soap|soap '
            'and a {brush|towel|rag}|a {brush|rag} and {warm |clean |cold |}water}," $Ssaid{ and smiled|}.',
            "{Not far away|Close by|Near the {wall|gate|house}} {was|stood} {a tub|a pail|a jug} of {warm |"
            "clean |cold |}water, and $S {ran|went} to get {some |}soap.",
        ),
        "solve": (
            "{$lead}$they {washed|scrubbed} $X {$how|in no time|until {the water was brown|the mud was "
            "gone}}. {It was {clean|as good as new}.|Now it was {clean|nice and clean} again.|Soon it was "
            "{clean|all clean}.}",
            "{Rub, rub|Scrub, scrub|Splash, splash|Drip, drop}! {Bit by bit|Little by little|Slowly|One "
            "spot at a time,} the mud {came off|went away|was gone}, and $X was {clean|nice and clean|all "
            "clean}{ again| at last|}.",
            "{$lead}$S {washed|scrubbed} and $N {held {it|$X}|helped|sang} until $X was {clean|all clean|"
            "nice and clean}{ again|}.",
            '"$well{There|Done|Look}, $V," $Ssaid. {$X was {clean|all clean|nice and clean}{ again|}|$s had '
            "washed $X, and {it was clean|the mud was gone}}.",
            "{Splash, splash|Drip, drip|Up and down|Round and round|Here and there} {went|moved|ran} the "
            "{soap|water|bubbles}, and {the {brown |}mud {came off|went away|ran off}|all the mud was gone|"
            "{the|every} {last |}spot {came off|went away}}. {At last|Now|In the end} $X was {clean|all "
            "clean|nice and clean}{ again|}.",
            "{It took {a long time|an hour|two songs}|It was {slow|fun|hard} work}, but {then|in the end} "
            "$X was {clean|nice and clean|all clean}{ again|}.",
        ),
    },
)

WET = Plot(
    "wet",
    "w",
    PROBLEM_BEATS,
    {
        "hook": (
            '"$oh! My $adj $o is {so |all |very |}wet!" $Ncried.',
            "$Ns $adj $o was {so |very |}wet. {Water {ran|dripped} from it.|The rain had {come fast|not "
            "waited}.|$N {felt|was} $sad.}",
        ),
        "problem": (
            "{Drip, drop|Drip, drip|Plop, plop|Pitter, patter|Splish, splash}! {It {rained|began to rain}|"
            "{Rain|Cold rain|Big drops} {fell|came down}} $at_p, and {{nobody|no one} {had time to run|"
            "could hide|was fast enough|had a coat}|there was no {roof|place to hide|dry spot}|$n was too "
            "{slow|late}|the {house|way home|next door} was far away}. {Soon|Now|In no time|One minute "
            "later} $O was {very |all |so |}wet.",
            "$sudden $O {fell|slipped|dropped|rolled} into {a {big |deep |cold |}puddle|the water|a {stream|"
            "tub of water}}{ with a {splash|plop|splat}|}. {{Now|Oh,|Soon} it was {very |all |so |}wet.|It "
            "{was|got} {very |all |so |}wet{ from top to bottom| through and through|}.}",
            "{Drip, drop|Drip, drip|Plop, plop|Pitter, patter}! {It {rained|began to rain}|Rain {fell|came "
            "down}} $at_p, and {{nobody|no one} {had time to run|could hide|was fast enough}|there was no "
            "{roof|place to hide}|$n was too slow|the {house|way home} was far away}. {Soon|Now|In no time} "
            "$O was {very |all |so |}wet.",
            "{It rained $at_p|Rain fell $at_p|A storm came over the $p}, and {before $n could {run|hide}|in "
            "no time|in a minute} $O was {very |all |so |}wet.",
            "{A|One} {big|dark|black|fat} cloud came {over|close}, and {down|out} {came|fell} the rain. $O "
            "{was|got} {so |very |all |}wet.",
            "{Rain|Cold rain|Heavy rain|The rain} {came|fell} {from all sides|in big drops|without end}, "
            "and {$N could not {cover} $O|$O was not under a roof}. {Soon|Now} it was {very |all |so |}wet.",
        ),
        "tell": (
            '"{$well}My $o is {so |all |}wet," $Nsaid{ $sadly|}. "{It drips and drips|I should have run|I '
            'was too slow|It will never be dry|I do not know what to do}."',
            "{$lead}$N {showed $S the wet $o|held out the wet $o|{pointed to|looked at} the wet $o and "
            "{cried|sighed|said nothing}}.",
            '"{Look|See}, $S," $Nsaid{ $sadly|}. "{My $o is {full of water|dripping|all wet}}."',
            '"{Just|Only} look at my {poor |}$o," $Nsaid{ $sadly|}. "It is {so |all |very |}wet{ now|}."',
            "{Water|Rain} {ran|dripped} {down $his {nose|face|arms}|from $X} while $N told {what had "
            "happened|how it got wet}.",
        ),
        "attempt": (
            "{First |}$they {rubbed|patted|dabbed} {it|$X} with {{dry |some |}leaves|{dry |some |}grass|a "
            "{leaf|rag|sock|sleeve}}, but {it did not {help|work}|$X {stayed|was still} wet|that {helped|"
            "did} very little|it {was|stayed} as wet as before}.",
            "{$lead}$M {shook|rubbed|patted|squeezed} {it|$X} {hard|again and again|for a while|twice|with "
            "both hands}, but {it did not {help|work}|the water did not come out|$X {stayed|was still} wet|"
            "there was too much water in it}.",
            "{$lead}$S {blew on {it|$X}|waved {it|$X} in the air|used a {leaf|rag|sock}}, but {it did not "
            "help|$X {stayed|was still} wet}.",
            "{A|One} {leaf|sock|sleeve|little rag} was {not enough|too small} for this. {It stayed wet.|$X "
            "stayed wet.}",
            "{Shake, shake|Pat, pat|Rub, rub}! {More|Still more} water {came|ran} out, {but|and} $X was "
            "still wet.",
        ),
        "turn": (
            "$soon {the sun came {out|back}|the clouds {went|moved|blew} away|it was {warm|sunny|bright} "
            "again|the rain {stopped|was over}}, and $S {had {an idea|a {good |}plan}|knew what to do|got "
            "{a {big |soft |}towel|a {long |}{rope|string|line}}}.",
            '"{Wait|I know|I have {an idea|a plan}|Hold on|Let me see}," $Ssaid. $s {came back with|went to '
            "get|got|found} {a {big |soft |warm |}towel|a {long |}{rope|string|line}}.",
            '"{We need|Let us use|What we need is|How about} {a {big |soft |warm |}towel|the {warm |bright |'
            '}sun|a {warm |sunny |}{stone|wall|spot}|some {wind|sun}}," $Ssaid{ {and smiled|$skindly}|}.',
            '{Bit by bit|Slowly|At last} the clouds {went|moved} {away|on}. {"Good,"|"Here is the sun,"|"At '
            'last,"} $Ssaid{ $skindly|}.',
        ),
        "solve": (
            "{$lead}$they {hung|put|laid|spread} $X {in the {warm |hot |}{sun|wind}|on a {warm |sunny |flat "
            "|}{stone|wall|fence}|over a {warm |sunny |}{branch|fence}} and {waited|sang|told {jokes|"
            "stories}|{watched|counted} {clouds|leaves}}. {Soon|In an hour|Before {lunch|dinner}|By and "
            "by}, it was {dry|all dry|warm and dry}.",
            "The sun {shone on|warmed} $X, and {bit by bit|little by little|slowly} it {got|became|was} "
            "{dry|all dry|warm and dry}.",
            "{$lead}$S {held|turned} {it|$X} {in the {warm |hot |}{sun|wind}|over and over} until $X was "
            "{dry|all dry|warm and dry}{ again|}.",
            '"$well{There|Done|Look}, $V," $Ssaid {a little later|after a while|in the end}. {$X was {dry|'
            "all dry|warm and dry}{ again|}|$s had dried $X}.",
            "{First|Now} one side, then the other: the {warm |hot |bright |good |}{sun|wind} {did its work|"
            "took its time|worked hard|was a friend}, and $X {was|got} {dry|all dry|warm and dry}{ again| "
            "at last|}.",
            "{$lead}$they {sat|stayed} {beside|near|next to} it {and {sang|talked|told {jokes|stories}}|for "
            "{an hour|a long time}}. {When|As soon as} $X was {dry|all dry|warm and dry}, {$they cheered|"
            "all was well}.",
        ),
    },
)

SHARE = Plot(
    "share",
    "s",
    (
        ("intro", "own"),
        ("arrive", "early"),
        ("wish", "refuse"),
        ("hurt", "alone?", "aside?"),
        ("think?", "change"),
        ("shared", "thanks?"),
        ("end", "moral?"),
    ),
    {
        "hook": (
            '"{No|No, no}! {My $adj $o is mine|You cannot have my $adj $o|I will not share my $adj $o}!" '
            "$Ncried.",
            "$N {did not want to|would not} share $his $adj $o. {Not {today|now}, not ever|Not with {anyone|"
            "anybody}|It was $his and nobody else could have it}.",
        ),
        "wish": (
            '"$well{May I|Can I|Could I|Please may I} {play with|hold|try|use|have a turn with} {your|the} '
            '{$adj |}$o{, $V|}?" $Sasked{ $skindly|}.',
            '$S looked at $X. "{May I|Can I|Could I} {have a turn|try {it|that}|play with it|hold it}{, $V|'
            ', please|}?" $s asked{ $skindly|}.',
            '"$well{What a {nice|lovely|fine|pretty} $o|I like your $o|Your $o is {so nice|lovely|great}}{, '
            '$V|}!" $Ssaid. "{May I|Can I|Could I} {have a turn|try it|play with it|hold it}?"',
            '$S {could not stop looking at|liked|loved} $X. "{May I|Can I|Could I} {have a turn|try it|hold '
            'it|play, too}{, $V|}?" $s asked{ $skindly|}.',
        ),
        "refuse": (
            '"{No|No, no|Not now|Never}{, $S|}!" $Nsaid{ and {held|pulled} $X {close|tight|away}|}. "{It is '
            'mine|It is my $o|Get your own $o|Go away|I want it all for {me|myself}}."',
            '{But |}$N {shook $his head|turned away|held $X {close|tight}} and {said no.|said, "{No|Never}, '
            '{it is mine|this is my $o|I do not want to share}."|would not share.}',
            "{But |}$N did not want to share {$X|it}{ {with $S|with anyone|at all}|}. $n {ran off with|hid|"
            "held on to|turned away with} $X.",
            '"{My $o is|It is} {just |only |}for me," $Nsaid{ and {held|pulled} $X {close|tight|away}|}. '
            '"{I will not|I do not want to} share."',
            '{The smile left $Ns face.|$N did not like that.|$N made a face.} "{No|Never}, {it is mine|this '
            '$o is mine}," $n said.',
        ),
        "hurt": (
            "{$lead}$S {was|felt} {sad|very sad|hurt} and {went|walked} away{ {slowly|quietly|without a "
            "word|to {sit|rest} under a {big |tall |}tree|to {play with|look for} {stones|sticks|leaves}|"
            "alone}|}.",
            '"{Oh|All right|Okay}{, $V|}," $Ssaid $ssadly. $s {went|walked} away{ {slowly|quietly|to sit '
            "under a tree|to play with {stones|sticks|leaves}}|}.",
            "{A tear ran down $Ss face|$Ss smile was gone|$S looked at the ground}, and {then |}$s {went|"
            "walked} away{ {slowly|quietly|alone}|}.",
            "{Without a word|With {a sigh|wet eyes}|Slowly|Very quietly}, $S {went|walked|turned} away and "
            "sat down {alone|all alone|on {a log|a stone|the grass}|under a {big |tall |}tree|{by|near} a "
            "{wall|fence|bush}}.",
            "{$lead}$S {said nothing|only nodded|did not cry|bit $shis lip|{swallowed|sighed} once}, {but|"
            "and} $s {looked|was} {so |very |}{sad|hurt|small}{ as $s {went|walked} away|}.",
        ),
        "alone": (
            "$N {was|played|sat|stood} {all |}alone with $X{ $at_p|}{ for {a while|an hour|a long time}|}, "
            "but it {was|felt} {no fun|not much fun|dull|boring|too quiet|wrong|odd}{, and the {sun|time} "
            "{went|moved} slowly|}.",
            "Now $n had $X all to $himself, but {it was {no fun|not much fun|dull|boring|only half the fun}|"
            "the $p was {too quiet|so quiet|empty}|nobody {laughed|cheered|looked|clapped}}.",
            "$X was {still {good|nice|fine|lovely}}, but {it was {no fun|not much fun|dull|boring} {to play "
            "alone|all alone}|the $p {felt|was} {too quiet|so quiet|empty}}.",
            "{Up and down|Round and round|Back and forth|Here and there}, $N {played|ran} {all |}alone with "
            "$X. But it {was|felt} {no fun|not much fun|dull|boring|too quiet|wrong}.",
        ),
        "think": (
            "$N {thought {about $S|of $Ss sad face}|looked {over |}at $S|saw $S {sit alone|all alone}} and "
            "{felt {bad|sorry|ashamed}|did not like what $n saw|knew it was wrong}.",
            '"$well{That was not {kind|nice}|I was {mean|not kind|unkind}|What have I done}," $n thought. '
            '"$S is {sad now|all alone|sad because of me}."',
            "{Little by little|Slowly|After a while|The more $n played, the more} $N {felt {bad|sorry|"
            "ashamed}|missed $S}.",
            "$N {put $X down|sat still|stopped} and {looked over|looked} {to where|at the place where} $S "
            "{sat|was}. $n felt {bad|sorry|ashamed}.",
            '"{Poor dear|$S is sad}, and I {am to blame|made it so|did that}," $n thought.',
        ),
        "change": (
            '{$lead}$M {went|ran|walked} {over |}to $S. "{I am sorry{, $S|}|Please forgive me{, $S|}|I was '
            '{mean|not kind}{, $S|}}," $n said. "{You can have a turn|Let us share $X|Here, take $X|We can '
            'play with $X together}."',
            '"$well{I am sorry{, $S|}|Wait{, $S|}}," $Nsaid. "{Let us share $X|Come and play with $X|You '
            'can have {$X|a turn with $X}{ now|}}."',
            'So $n {took $X to $S|held out $X to $S} and said, "{I am sorry|Here you are|Let us share{ it|}|'
            'Please take {it|a turn}|We can {share|take turns}}."',
            "{It was not easy|It took {a moment|a deep breath|some time}}, but $N {went|walked} {over |}to "
            '$S and {said|whispered}, "{I am sorry|Forgive me}. {Take|Have} {a turn|$X}."',
            '{$lead}$N {put|laid} $X {beside|next to|in front of} $S. "{I am sorry{, $S|}|I was {mean|not '
            'kind}}," $n said. "{Let us share|It is for two|We can share}."',
        ),
        "shared": (
            "{Then |So |}$N and $S {shared $X|took turns with $X}{, and {the $p was full of {laughter|songs|"
            "noise}|{it was|this was} {much|far} {better|more fun}|it was fun for both}|}.",
            "{$lead}$they {took turns|shared it|played by turns}{ for {an hour|a long time}|}. {First|To "
            "begin with,} $S {had|held|tried|took} $X, then {it was $Ns turn|$N}{, then {$S again|back to "
            "$S}|}, and {both {laughed|smiled|sang}|{it was|this was} {much|far|so much} {better|more fun}|"
            "the $p {was full of|rang with} {laughter|songs|noise}}.",
            "{First|At first} $S {was careful with|held|tried} $X{ {gently|for a while|a little}|}, and "
            "then $they shared it{ {for an hour|all day|all afternoon|until {lunch|dinner}}|}. {It was|This "
            "was} {much|far} {better|more fun}{ than before|}.",
            "{Now|From then on|This time} $they shared: $S had $X {first|for a while}, and {then |after "
            "that }{it was $Ns turn}. {It was {much|far} {better|more fun}.|}",
            "{One turn|A turn} for $S, one turn for $Nm, {all {day|morning}|again and again|over and over}: "
            "{sharing|to share} $X was {fun|better|so much fun|easy}.",
        ),
        "thanks": (
            '"$well{Thank you|Thanks|This is fun|You are kind|I like this}{, $V|}," $Ssaid{ $skindly|}.',
            "{$lead}$S {was $glad|smiled {again|from ear to ear}|gave $him a {big|warm|long} hug}, and {$N "
            "was $glad|$N felt {good|warm} inside}.",
            '"$well{It is|Things are} {better|more fun} with {you|two}{, $S|}," $Nsaid{, and $S {nodded|'
            "smiled|laughed}|}.",
        ),
    },
    others="friend",
)

SKILL = Plot(
    "skill",
    "skill",
    (
        ("intro", "own"),
        ("arrive", "early"),
        ("dream", "fail"),
        ("sad?", "cheer"),
        ("again?", "aside?", "show"),
        ("can", "glad?"),
        ("end", "moral?"),
    ),
    {
        "hook": (
            '"$well{I will never|I cannot|I just cannot} $do {my|this} $adj $o!" $Ncried.',
            "$N {could not|did not know how to} $do $X. {It was {too |so |very |}hard.|$n {felt|was} $sad.|"
            "$N had tried {and tried|for days|all {week|$time}}.}",
        ),
        "dream": (
            "$M wanted to $do {the|$his} {$adj |}$o {so much|very much|like the big {children|ones}|{as "
            "well as|like} $his $giver|all by $himself}.",
            '"{Today I will|I want to|I am going to} {learn to |}$do {the|my} {$adj |}$o{ all by myself|}," '
            "$Nsaid{ {to $himself|out loud|with a {nod|smile|grin}}|}.",
            "$M {wished|hoped} to $do {the|$his} {$adj |}$o {one day|very soon|that {very |}day|before "
            "{lunch|dinner|dark}}.",
            "{More than anything|Most of all|For a long time}, $N wanted to $do {the|$his} {$adj |}$o{ "
            "{well|alone|like a star}|}.",
            '"{If only I could|How I wish {to|I could}|One day I will|I would love to} $do {my|this} $o," '
            "$Nsaid{ {to $himself|out loud|with a sigh|to the {wind|clouds}}|}.",
        ),
        "fail": (
            "$M {tried {once|twice|three times|again and again}|did $his best|{tried|worked} {hard|for an "
            "hour}}, but {$n could not do it|it did not {work|go well}|$X would not {do what $n wanted|"
            "work}|everything went wrong}.",
            "But {it was {hard|not easy|harder than $n thought}|$doing $X was {hard|not easy}}. {{Oops|Ouch|"
            "Bump|Crash|Thump}! $N {had to stop|fell over|sat down hard}.|$N could not do it.|It went wrong "
            "{every time|again and again}.}",
            "{The first|One} {time|try} {was bad|went wrong|was no good}, {and|then} the {next|second} {was "
            "worse|was no better|went wrong, too}. $N could not $do {it|$X} {$at_p|yet|at all}.",
            "{One try, two|Two tries, four|Three tries, five} tries, {ten|six|seven} tries{: {nothing "
            "worked|it went wrong|no luck}|}. $N could not $do $X{ at all| $at_p|}.",
            "{Every time|Again and again|{Three|Five|Ten|Six} times{ in a row|}|Once, twice, three times|"
            "All {morning|day}} {something|it all|everything} {went wrong|failed|came out wrong}{ $at_p|}. "
            "{$X was {harder|more trouble|not so easy}{ than it looked|}|It was {hard|harder than it looked|"
            "not easy at all}}.",
        ),
        "cheer": (
            '"$well{Do not give up|Do not stop now|Try again|Try {once|one time} more|You can do it|Do not '
            'be sad}, $V," $Ssaid{ $skindly|}. "{{I will|Let me} help you|I could not do it {at first|once}|'
            'It takes {time|practice}|$Doing $X takes time}."',
            '$S {sat down {beside|next to} $him|came {closer|over}|had seen {it|it all}}. "{Do not give up|'
            'Do not stop now|Try again|You can do it}{, $V|}," $s said. "{I will help you|It takes {time|'
            'practice}|$Doing $X takes time}."',
            '"$well{I will never|I cannot} $do {it|$X|my $o}," $Nsaid $sadly. "{Not yet|Yes, you can|Try '
            'again|Of course you can|Do not give up}{, $V|}," $Ssaid{ $skindly|}.',
            '"{I fell|I failed|I tried} {ten|six|a hundred} times{ at first|}," $Ssaid{ $skindly|}. "{Try '
            'again|Do not give up|You can do it}{, $V|}."',
            '$S {believed in $him|was not worried|had a kind word|knew better|smiled at $him}: "{Try again|'
            'Do not give up|Once more|You can do it|Soon you will}{, $V|}."',
        ),
        "again": (
            "{So |}$M {tried|began} again{ {the next {day|week|morning}|$how|and again|after a {rest|"
            "drink}}|}. {It was {a little|a bit} better{ now| this time|}.|{Again|Still|Now} it went wrong, "
            "but only {a little|once or twice}.|Still it did not {work|go well}, but $N did not {stop|cry|"
            "give up}.}",
            "{$lead}$M {took a deep breath|dried $his eyes|stood up|nodded} and {tried|began} again{ with "
            "$X|}.",
            "{All {day|week}|Every day|For {three days|an hour|a week}}, $n {tried|practiced|worked} with "
            "$X {$at_p|and did not {stop|give up}}.",
            "{Up|Back} {to work|again}! $N {tried|worked|practiced} with $X {until {lunch|noon|it got dark}|"
            "for {an hour|three days|a week}}.",
            "{Each|Every} try {was|got} {a bit|a little} better {than the one before|than the last}, and $N "
            "{did not stop|smiled a little|kept at it}.",
        ),
        "show": (
            "{$lead}$S {showed $him {how|what to do|a {little |}trick}|{held|touched} $X {to help|for a "
            "while}|{stayed|stood} {near|beside $him} and {clapped|counted|helped}}.",
            '"{{Slowly|Easy|Gently} now|Like this|Look {up|ahead}, not down|One, two, three|Watch me|Take '
            'your time}{, $V|}," $Ssaid{ and {showed $him how|{clapped|nodded}}|}.',
            "{This time|Now} $S {helped|counted to three|ran along|showed $him how}{, and {it was {easier|"
            "better}}|}.",
            "{$lead}$S {stood|stayed|sat|walked} {close|near|beside $him} and {said|called|whispered}, "
            '"{Slowly|Gently|Like this|Keep going|Look {up|ahead}|Easy now|Not so fast}, $V."',
            "A {little|small|good|quick} {tip|trick|word|sign} from $S {helped|was enough|made it easier|"
            "did it}.",
        ),
        "can": (
            "{And then|At last|On the {tenth|last|next} try}, $N {could do it|did it}! $N $did $X {all by "
            "$himself|right there $at_p|as if it was easy}.",
            "{At last|This time|Now|On the {tenth|last|next} try}, $N $did $X {all by $himself|without any "
            "help|as if it was easy|so well that $S clapped}.",
            '"{Look, $S|Look at me|See, $S|Hooray}! {I can do it|I am $doing $X|I can $do $X|I did it}!" '
            "$Ncried. {It was true.|And it was true.|{$N|$n} could $do $X {at last|now|all by $himself}.}",
            "{It was quiet.|$S held $shis breath.} Then $N $did $X {all by $himself|right there $at_p|"
            "without {help|a mistake}}!",
            "{How it happened, nobody knew|It was like {magic|a dream}}, but {now|at last} $N could $do $X{ "
            "{well|alone|all by $himself}|}!",
        ),
    },
)

GIFT = Plot(
    "gift",
    "m",
    (
        ("intro", "wish"),
        ("idea", "make"),
        ("worry?", "aside?", "arrive_gift"),
        ("give", "open?"),
        ("love", "glad_giver?"),
        ("end", "moral?"),
    ),
    {
        "hook": (
            '"$well{What can I give $S|What will $S like}?" $Nasked. {It was almost $Ss birthday.|$Ss '
            "birthday was {near|tomorrow|coming}.}",
        ),
        "wish": (
            "{It was {almost|nearly|soon}|In {two|three|a few} days it was|Soon came|Next {week|month} was} "
            "the birthday of $knownS, {and|so} $N wanted to {give|make} $shim a {{nice |special |fine |"
            "}gift|{nice |special |fine |}present|surprise}. {It had to be {special|just right|something "
            "{nice|new}}.|What could it be?|$N {thought and thought|began to think|had no idea}.|But what?}",
            "$knownS {was {sad|sick|in bed}|had a {cold|bad week|sore foot}} {that {week|$time}|for days}, "
            "{and|so} $N wanted to {give|make} $shim a {nice |little |special |}{gift|present|surprise}{ "
            "{at once|all by $himself}|}.",
            "{{For {days|a week|a long time}|All {week|month}|Since {spring|summer|fall|winter|May}}|One "
            "{cold|quiet|rainy|lazy} {day|night|morning}}, $N wanted to {give|make} $knownS a {nice|special|"
            "little|fine|small} {gift|present|surprise}{. {What could it be?|But what?|It had to be good.}|"
            ".}",
        ),
        "idea": (
            '"{{I know|Now I know}{ what to do|}|I have {an idea|it}|Yes|Good}," $n {thought|said|sang|'
            'laughed}. "{I will|Let me|I can|I want to} make $ao for $S{ {with my own hands|by {Sunday|'
            'tomorrow|myself}|and paint it|in secret}|}."',
            "$M {thought {hard|for a long time|and thought|all {day|night}}|sat down and thought|asked $his "
            "$giver|walked {up and down|round and round}|looked {out of the window|at the {clouds|stars}}} "
            "and {then |at last |}{chose|decided|began|wanted} to make $ao{ {for $S|by hand|in secret}|}.",
            "$M {got|found|looked for} {paper|paint|string|wood|cloth|wool|buttons|glue}{ and {paint|string|"
            "wood|cloth|wool|buttons|ribbons}|}{ {from $his $giver|in a {drawer}}|} and began to make $ao{ "
            "for $S|}.",
            "{Gold|A big {present|toy}|A ride in the sky|The moon|A cow|A castle} costs {a lot|too much|"
            "more than {a penny|a coin}}, but $ao can be made {by hand|at home|at night|from {paper|cloth|"
            "wood|old things}}. $N {began|smiled|set to work|knew what to do|clapped|got up}.",
        ),
        "make": (
            "$M worked {all {$time|day|week}|for {two|three|four|five} {days|hours}|until {dark|dinner|"
            "bedtime|the stars came out}} {on|at} $X{, and {nobody|no one} {knew|was told} about it| {in "
            "secret|by the window|under a tree}|}.",
            "$M {cut|painted|tied|folded|rubbed|measured|sewed|glued} and {sang|hummed|smiled|worked|"
            "whistled} {all {$time|day|week}|for {two|three|four} {days|hours}|until {dark|dinner|"
            "bedtime}}, and {then|at last|in the end} $X was {done|ready|finished|as it should be}.",
            "It was {hard|slow|careful|long|quiet|fine} work, but {$n liked it|$n did not stop|it was fun|"
            "the hours flew|it went well}{, and {at last|soon} $X was {done|ready|finished}|. $X was {done|"
            "ready} {before dinner|by {night|dark}|at last|in {two|three} days}}.",
            "{Snip, snip|Tap, tap|Cut, fold, tie|Stitch by stitch|Bit by bit}: $N {worked|sat} {at the "
            "table|in a corner|by the window|on the floor|in the shade} {all {$time|day}|until {dark|dinner|"
            "bedtime}} to make {$X|the {best|nicest} $o {ever|of all}}.",
        ),
        "worry": (
            '"$well{What if|But what if} $S does not like {it|$X|my $o}?" $n {thought|asked {out loud|the '
            "moon|the wind}}.",
            "{But {then |}|Then }$M {was|felt} {worried|not sure|a little nervous}. {Maybe|Perhaps|It might "
            "be that} $S {wanted something else|had {a better|a bigger|another} $o|did not like {$X|it}}.",
            "{One side was {a little|a bit} {crooked|bent|too long}|It was not {quite |}perfect|$X was a "
            "little {crooked|bent|funny}}, and $N {was|felt} {worried|not sure|a little {sad|nervous}}.",
            "{That night|All evening|On the way}, $N {looked at|turned over|held} $X and {wondered|asked "
            '$himself}, "{Is it|Will it be} good enough{ for $S|}?"',
        ),
        "arrive_gift": (
            "{The next {day|morning}|That {afternoon|evening}|After {lunch|dinner|breakfast}|On the {big |"
            "}day|Two days later}, $n {took|carried|brought} $X $to_p, where $S was {waiting|sitting|"
            "resting|singing|busy|asleep|alone|reading|picking flowers|looking at the clouds}.",
            "{The next {day|morning}|That {afternoon|evening}|After {lunch|dinner|breakfast}|On the {big |"
            "}day|Two days later}, $n $went $to_p with $X {behind $his back|under $his {arm|coat}|in $his "
            "{arms|hands}}. $S was {there|already there|sitting there|{asleep|alone|busy} there|by a tree|"
            "in the shade}.",
            "$S was {busy|resting|waiting|alone|asleep|singing} $at_p {that {$fine |}$time|the next {day|"
            "morning}}. $N {$went|came} there with $X {behind $his back|under $his {arm|coat}|in $his {arms|"
            "hands}}.",
        ),
        "give": (
            '"{This is for you|I made this for you|Here is something for you|I have something for you|'
            'Surprise|Look what I have|Close your eyes}, $S," $Nsaid and held out $X{ {$at_p|$how}|}.',
            "{There $at_p, |}$M {gave $S $X|gave $X to $S|put $X in $Ss {hands|arms|lap}} {$how|and {waited|"
            "looked at the ground|closed $his eyes|held $his breath|smiled}}.",
            "{There $at_p, |Then |}$M {smiled|took a deep breath|blushed|swallowed|looked up} and gave $S "
            '$X. "{I made it {for you|all by myself|at home|with love}|It is for you|I hope you like it|It '
            'took me {all day|three days|a week}}," $n {said|whispered}.',
            "{Then it was time|Now or never|The {time|moment} had come}. {There $at_p, |}$N gave $S $X{ "
            "{$how|and {waited|smiled|blushed}}|}.",
            '{There|Right there|In the {sun|shade}} $at_p, $N gave $S $X{ $how|}. "{I made it|It is for you|'
            'I hope you like it|It is my own work|It took {all week|days}|Nobody helped me}," $n {said|'
            "whispered}{ and {waited|smiled|blushed|looked away}|}.",
        ),
        "open": (
            "{$lead}$S {looked at $X|took $X|turned $X {around|over}} and {said nothing|was quiet|did not "
            "move} for a {moment|while|minute}. $Ss eyes {were {big|wide|wet|round}|shone|filled with "
            "{light|tears}}.",
            "{$lead}$S {could not believe it|was so surprised|held $X up {high|to the light}|opened $shis "
            "eyes wide}.",
            "For a {moment|minute}, $S {was quiet|said nothing}. Then $s {smiled|laughed|clapped $shis "
            "hands}.",
            "{First|At first} $S blinked {once, then {twice|again}|with big eyes}. {Then|And then} {a smile "
            "came|$s smiled|$s laughed}.",
            "{It was quiet|Nothing moved|Not a leaf moved|The wind held still} $at_p{ for a {moment|minute}|"
            "}. $S {looked at|held|took|touched} $X{ {with both hands|without a word|again and again}|}.",
        ),
        "love": (
            '"{A $o|What a {lovely|pretty|fine|nice|wonderful} $o|It is {lovely|wonderful|perfect|just what '
            'I wanted}|I love {it|this $o}|This is the best $o in the world}!" $Scried. "{Thank you|Thank '
            'you so much}, $V."',
            '"$well{Did you {really |}make this $o|Is this $o {really |}for me|Is it for me}{, $V|}?" '
            '$Sasked. "{I love it|It is {lovely|wonderful|perfect|the best $o of all}|Thank you so much}."',
            '$S hugged $him {tight|for a long time|again and again|with both arms}. "{Thank you|Thank you '
            'so much|Oh, thank you}, $V," $s {said|whispered|laughed}. "{I {love|like} {it|this $o|$X}{ so '
            'much| a lot|}|It is {lovely|wonderful|perfect|fine|just right|the best $o of all}}."',
            '"{Nobody|No one} {ever |}{made|gave} me {anything so {nice|lovely|fine}}," $Ssaid. "Thank you, '
            '$V."',
        ),
        "glad_giver": (
            "{$lead}$N was so $glad{ that $n {danced|jumped up and down|sang|clapped $his hands|laughed out "
            "loud|{turned|spun} in a circle|could not speak}|}.",
            "{$lead}$S {kept|put} $X {by the bed|on the wall|near the window|close by|on a shelf} {for "
            "{years|ever|many years}|and looked at it {every day|often}|where {everyone|all} could see it}.",
            "{All the work|The work} was {worth it|worth the time|not for nothing}, and $N {felt {warm|"
            "proud|good} inside|was $glad}.",
            "{$X went everywhere with $S|$S {took|carried} $X everywhere}{ {from then on|after that}|}, and "
            "$N was {so |very |}$glad.",
        ),
    },
    hook=False,
    kept=False,
)

NOISE = Plot(
    "noise",
    "c",
    (
        ("intro", "arrive_bare"),
        ("early",),
        ("see", "noise"),
        ("afraid", "guess?"),
        ("aside?", "brave?", "open"),
        ("inside", "laugh"),
        ("end_noise", "end", "moral?"),
    ),
    {
        "see": (
            "$they {saw|found|came to|noticed} $ao {$spot|in the {grass|middle of the path|shade}}. {$X was "
            "closed.|It was closed.|Nobody was near {it|$X}.|Whose $o was it?}",
            "There was $ao {$spot|in the {grass|middle of the path|shade}}. {Nobody was near {it|$X}.|Whose "
            "$o was it?|It had not been there before.}",
            "$at_p, $they {saw|found|came to|noticed} $ao{ $spot|}.",
            "{Right|Just} {there|in front of $them|by the path|ahead} {was|stood|sat} $ao{ that {nobody|no "
            "one} had {seen|noticed} before|, {closed|all alone}|}.",
        ),
        "noise": (
            "$sudden {a {strange|small|soft|funny|odd} {noise|sound}|a {scratching|squeaking|tapping} "
            "{noise|sound}} came from $X. {It went|$X went} {thump, thump|scratch, scratch|tap, tap|squeak, "
            "squeak|bump, bump}{.|!}",
            '"{Thump, thump|Scratch, scratch|Tap, tap|Squeak, squeak|Bump, bump}," {went|said} $X. {It '
            "{moved|shook} {a little|a bit}|It even moved}!",
            "{Thump, thump|Scratch, scratch|Tap, tap|Squeak, squeak|Bump, bump}! $X {made a {strange|small|"
            "soft|funny|odd} {noise|sound}|{moved|shook} {a little|a bit|all by itself}}.",
            "{Then|Just then|Suddenly} $X {shook|moved|jumped} {a little|a bit|all by itself}! {Something|"
            "Someone} {was in it|was inside|went {tap, tap|scratch, scratch|squeak}}.",
        ),
        "afraid": (
            "$M {was|felt} {afraid|scared|a little afraid|very scared} and {hid {behind $S|$spot}|took a "
            "step back|wanted to run home|held on to $S|could not move}.",
            '"$well{What {is that|was that}|Did you hear that}{, $S|}?" $Nasked. $N was {afraid|scared|a '
            "little {afraid|scared}|very scared}.",
            '"$well{Something is in|There is something in|Listen to} $X," $Nsaid. "I am {afraid|scared}{, '
            '$S|}."',
            '{"Oh,"|"Oh dear,"|"Help,"} $Nsaid {in a {small|shaky|tiny} voice|and {stepped|jumped} back}. '
            "$X made $him {scared|afraid}.",
        ),
        "guess": (
            '"$well{Maybe it is|It may be|It could be|It must be} {a {ghost|monster|snake|big bug|dragon|'
            'witch}|something {big|wild}}," $Ssaid.',
            '"$well{Do not be afraid|Do not be scared|Be brave|Do not worry|It will be all right}{, $V|}," '
            '$Ssaid. "{I am {here|with you}|{Let us|We can} {look|open $X|open it} together|It {sounds|must '
            'be} {small|little}}."',
            "$S was {a little |}{afraid|scared}, too{, but {curious|tried not to show it|held $his hand|did "
            "not run}|}.",
            '"{It could be|Maybe it is|It may be} {sad|cold}," $Ssaid{ $skindly|}. "{Let us} {look|help|'
            'open it}{, $V|}."',
        ),
        "brave": (
            "{But {then |}|At last |After a while |}$N {took a deep breath|counted to three|held $Ss hand|"
            "was brave} and {went|walked|crept|tiptoed} {up |closer |}to $X.",
            '"$well{We must|Let us|I will|I have to} {look|open it|open $X|be brave|see}," $Nsaid{ at last|'
            "}. {{So|Then} $they {went|crept|tiptoed} {closer|up to $X}|$S {nodded|came along}}.",
            "{Step by step|One step, two steps, three steps|On {tiptoe|quiet feet}|Very slowly}, $they "
            "{went|came|crept} {closer|nearer} to $X.",
            "{$lead}$N {thought {about|of} {running|home}|shook a little|swallowed hard}, but {then |}$n "
            "{went|walked|tiptoed} {up |closer |}to $X.",
        ),
        "open": (
            "{Very slowly|With {one|a shaking} hand|Together|Inch by inch}, $N opened {it|$X}.",
            "{$lead}$N {looked|peeked|peered} {in|inside}{ first|, {and so did $S|with one eye}|}. {What "
            "{was it|was there}?|There, in the dark, {were|shone} two {bright|round|small|green} eyes.|Two "
            "{bright|round|small|green} eyes {looked|blinked} {back|out}.|Something {moved|breathed|"
            "blinked} {in there|in the dark}.}",
            "{$lead}$S {held|turned|tipped} $X{ {gently|a little}|}, and $N {opened it|looked {in|inside}|"
            "peeked {in|inside}}.",
            "{Creak|Click|Pop}! {$X was open.|$N opened $X.}",
        ),
        "inside": (
            "{Out {came|jumped|hopped|climbed}|Inside was|There sat|It was only} a {baby|tiny|little|small|"
            "fluffy|sleepy} {kitten|puppy|bird|chick|beetle|lamb}{, {not a monster|and it {yawned|blinked|"
            "sneezed}|shaking a little}|}!",
            '"{Look|Oh, look|See}, it is {just|only} a {baby|tiny|little|small|fluffy|sleepy} {kitten|puppy|'
            'bird|chick|lamb}," $Ssaid{ and {laughed|smiled}|}. It {jumped|came|climbed|hopped} out of $X.',
            "{A {tiny|small} nose|Two {tiny|fluffy} ears} {came|looked} out{ first|}. It was {only |just |"
            "}a {baby|little|sleepy} {kitten|puppy|bird|chick|lamb}{, not a monster|}!",
        ),
        "laugh": (
            "{$lead}$N {laughed|smiled|giggled|had to laugh} and was not {afraid|scared} any more{, not {a "
            "bit|at all}|}. {$X was its {bed|home|house|hiding place}.|It {had been asleep|wanted to get "
            "out|was tired}{ for {hours|days}|}.|}",
            '"{Hello, little one|You are so small|What a fine $o|I was {afraid|scared} of you|So {it was '
            'you|that was all}|You are no monster}," $Nsaid{ and {laughed|smiled|giggled}|}. {Now $N was '
            "not {afraid|scared} any more.|{Nobody|No one} was {afraid|scared} {now|any more}.}",
            "{$lead}$N and $S {laughed {and laughed|so hard|out loud|for a long time}|had to {sit down and |"
            "}laugh|{smiled|giggled} {at last}}. {Nobody|No one} was {afraid|scared} of $X {any more|now}.",
            '"{All that fear for nothing|And we were {afraid|scared} of this $o|So small, and so loud}," '
            "$Nsaid{ and {laughed|smiled}|}. {Nobody|No one} was {afraid|scared} any more.",
        ),
        "end_noise": (
            "{$lead}$they {gave it {some|a little} {milk|bread|water|cheese}|stayed with it {for {a while|"
            "an hour}|until {noon|dark}}|stroked its soft {ears|head|back|nose}|made {it |}a bed {in $X|of "
            "{leaves|grass}}|sang to it}, and {it {fell asleep|was happy|yawned|closed its eyes|danced}|"
            "{then|soon} it {went|crept|climbed} back {into|inside} $X}.",
            "{The little one|The small thing} {sat on $Ns foot|danced around $S|ran around $X|went to sleep "
            "in $X}.",
            "{$lead}$they {left|put} {some |}{milk|bread|water|berries|cheese} {in|by|next to} $X{ and "
            "{said goodbye|waved}|}.",
            "{$lead}$N {stroked|patted|held} it {gently|for a while} while $S {looked for|got|found} {some |"
            "}{milk|bread|water|berries|cheese}.",
            "{It|The small thing} {jumped|ran|danced} {in and out of|around|on top of} $X {all {day|$time}|"
            "until it was {tired|sleepy}}.",
        ),
    },
    others="friend",
    hook=False,
)

RETURN = Plot(
    "return",
    "l",
    (
        ("intro", "arrive_bare"),
        ("find", "like"),
        ("keep", "aside?", "late", "seek"),
        ("choose", "give_back"),
        ("joy", "praise"),
        ("end", "moral?"),
    ),
    {
        "find": (
            "{There|By the path|Near a tree|On the way|In the grass|Under a bush}, $n {found|saw|picked up|"
            "noticed} $ao. {Nobody was near it.|Whose $o was it?|It was {lovely|fine|nice}.|It {lay|was} "
            "all alone.|}",
            "$at_p, $n {found|saw|picked up|noticed} $ao {$spot|in the {grass|sand|leaves}}.",
            "$sudden $n {stepped on|almost fell over|saw|spotted} something{ small| odd|}. It was $ao{ "
            "{$spot|in the {grass|leaves}}|}.",
            "{What was that|What {lay|was} there} {$spot|in the {grass|leaves}}? $N {bent down|went closer|"
            "looked twice} and {saw|found|picked up} $ao.",
        ),
        "like": (
            "{What a {nice|lovely|fine|pretty} $o|It was the {best|nicest|prettiest} $o of all}! $N wanted "
            "to {keep it|take it home|have it always}.",
            '"$well{I like this $o|What a {nice|lovely|fine|pretty} $o|This $o is {nice|fine|lovely}}," '
            '$Nsaid. "{I want to keep it|I will take it home|Nobody is here|Now it is mine}."',
            "{$lead}$M {picked up|turned over|looked at|held} $X{ {again and again|with both hands|to the "
            "light}|} and wanted to {keep it|take it home}.",
            "{How|Oh, how|My, how} {nice|lovely|fine|pretty} {it|$X} {was|looked}! $N {hugged|turned|"
            "touched|rubbed|held} {it|$X} and {did not want to {let go|give it up|go home without it}|"
            "wanted to keep it{ for {days|years}|}}.",
        ),
        "keep": (
            "{$lead}$M {put|hid} $X {under $his arm|behind $his back|inside $his coat}{ and {went on|smiled|"
            "sang}|}.",
            "{Was it right|Was it fair|But was it right} to {keep|take} $X? $N {was not sure|did not know|"
            "thought {about it|hard}}.",
            "{$lead}$M {sat down|walked around|played} $at_p with $X{ for {an hour|a while|a long time}|}.",
            "{For a while|For an hour|For some time}, $N {walked about|sat|played} $at_p with $X {in $his "
            "arms|close by|under $his coat}.",
        ),
        "seek": (
            '"$well{Have you seen|Did you {see|find}} {my|a} $o?" $Sasked{ $ssadly|}. "{It is $adj|I lost '
            "it {here|somewhere $at_p|$at_p}|I {dropped|left} it $at_p|I {looked|have looked} everywhere|It "
            'is my {best|favorite} thing}."',
            '$S {looked|was looking} {sad|at the ground|everywhere}. "{I lost my $o|I cannot find my $o|My '
            '$o is gone}{ {$at_p|today|this morning}|}," $s said. "{It is $adj|I {looked|have looked} '
            'everywhere|It was from my $giver}."',
            '$S was {crying|close to tears|very sad}. "{I lost|I cannot find|Somewhere I lost} my {$adj |'
            '}$o," $s said.',
            '"{Excuse me|Please|Hello}{, $V|}," $Ssaid{ $ssadly|}. "{I lost|I miss|I cannot find} my {$adj |'
            "}$o. {I had it $at_p|I {looked|have looked} {and looked|everywhere}|It was my {best|favorite} "
            'thing}."',
        ),
        "choose": (
            "{$lead}$N {thought {for a {moment|while}|hard|about it}|looked at $Ss {face|eyes|tears}|felt "
            "{bad|sorry}} and knew what {to do|was right}.",
            "{It was hard|It was not easy|For a moment $n wanted to run}, but $N {knew what was right|"
            "wanted to be {good|kind|fair}|did not {want to lie|lie}}.",
            '"$well{It is not mine|$X is not mine|It would be wrong to keep it|I would be sad, too}," $N '
            "{thought|said {quietly|softly}}.",
            "{Keep it or give it back|Speak or be still}? $N {did not think long|looked at $S and knew|only "
            "had to look at $S}.",
        ),
        "give_back": (
            '"$well{Is this your $o|Is it this one|Is this it}{, $S|}?" $Nasked and gave {it|$X} back to '
            "$shim.",
            '"$well{I found it|I found your $o|Here is your $o|Here it is|I have your $o}{, $S|}," $Nsaid '
            "and gave {it|$X} back{ to $shim|}.",
            "{$lead}$M {took|pulled} out $X and gave it back to $S{ $how|}.",
            '{$lead}$N {held out|brought out} $X. "{I think this is yours|This must be your $o|I found '
            'it}{, $S|}," $n said and gave it back.',
        ),
        "joy": (
            '"$well{My $o|That is it|You found {it|my $o}|Oh, thank you|Thank you, thank you}!" $Scried. '
            '"{I was so sad|I thought it was gone|You are so kind}{, $V|}."',
            "{$lead}$S {was so $glad that $s {danced|jumped up and down|sang|laughed out loud|hugged $him}|"
            "hugged {$X|$him} {tight|for a long time}|{jumped|danced} {up and down|around} with $X}.",
            "{A {big|wide|warm} smile came to $Ss face|$Ss eyes {shone|were bright}|$S could not stop "
            'smiling}. "{Thank you|Thank you so much}, $V," $s said.',
            "{$lead}$S {took $X and {laughed|danced}|{laughed and cried|cried} {for joy|at once|a little}}. "
            '"{You found it|My $o|My dear $o}!" $s {called|cried}.',
        ),
        "praise": (
            '"$well{You did the right thing|Not everyone would do that|You are {kind|good|a true friend}|'
            'Come and play with me|We can play with $X together|Let us be friends}{, $V|}," $Ssaid{ '
            "$skindly|}.",
            "{$lead}$N {felt {warm|proud|good|light} inside|was $glad, too|was $glad {to see that|to help}}.",
            '"$well{Do you want|Would you like} to play with {it|$X}{ with me|}{, $V|}?" $Sasked, and {$N '
            "said yes|$N nodded}.",
            '"{I will not forget this|That was {kind|honest|brave} of you|You have a good heart}{, $V|}," '
            "$Ssaid{ $skindly|}.",
        ),
    },
    others="friend",
    hook=False,
    kept=False,
)

HUNGRY = Plot(
    "hungry",
    "food",
    (
        ("intro", "arrive_food"),
        ("meet", "hungry"),
        ("look_food?", "aside?", "choose_food"),
        ("share_food", "eat"),
        ("thanks_food", "after?"),
        ("end", "moral?"),
    ),
    {
        "arrive_food": (
            "$day, $M $went $to_p with $ao {for {lunch|later}|to eat {later|there}|from $his $giver|that "
            "smelled {sweet|good}}.",
            "$his $giver {gave|had given} $him $ao{ one $fine $time| for {lunch|the road}|}. {Then|So|Soon} "
            "$n $went $to_p to {eat it|have it for lunch}{ in the {sun|shade|grass}| alone| there|}.",
            "$day, $M had $ao {for {lunch|later}|from $his $giver|that smelled {sweet|good|lovely}} and "
            "{took|carried|brought} it $to_p{ {to eat {it there|in the {sun|shade|grass}}|for a {rest|"
            "little picnic}|with a {skip|hop|song}}|}.",
        ),
        "meet": (
            "{There|Near a tree|On a log|By the path|Behind a bush}, $n {met|saw|found} $newS.",
            "{Just then|Soon|After a while}, $newS {came|walked} {by|along|up|past} {slowly|with a sad face|"
            "and looked at $X|and stopped}.",
            "$newS {was sitting|sat|stood|was|rested} {$at_p|near {a tree|the path}}{, all alone| and "
            "{looked {sad|tired}|did not {move|sing}}|}.",
        ),
        "hungry": (
            '"$well{I am so hungry|I am very hungry|My tummy is empty|I have had nothing to eat {all day|'
            'today}}," $Ssaid{ $ssadly|}. "{What a {nice|fine|lovely} $o|That $o smells so good|I have no '
            'lunch}."',
            "$S {was|looked} {so |very |}{hungry|thin and hungry|tired and hungry}{, and $shis tummy {made "
            "a noise|rumbled|growled}|}. $s {looked at|could smell|smelled} $X.",
            "$Ss tummy {made a {loud|funny|sad} noise|rumbled|growled}. $s was {so |very |really |}hungry{, "
            "and $X smelled {good|sweet|so good}|}.",
            '"{Mmm|Oh|Ah|Oh my}, {what is that|what a} {good |sweet |lovely |fine |}smell," $Ssaid{ $ssadly|'
            '}. "{I am {so |very |}hungry|My tummy is {empty|so empty}|I have not had {lunch|a bite} {today|'
            'all day}}."',
        ),
        "look_food": (
            "{$lead}$M looked at $X. {It was {not big|small|all $n had|the only one}.|There was only one.|"
            "It smelled {so |very |}good.}",
            '"$well{I have only this $o|This is my only $o|$X is all I have|I want my $o, too}," $n thought.',
            "{For a moment|At first|For a while}, $n {wanted to eat $X alone|held $X {tight|close}|did not "
            "want to share $X|thought of $X and nothing else}.",
            "{$X was made for one|There was only $X|$X was small}: {what now|what to do}? $N {thought {hard|"
            "about it}|was not sure}.",
        ),
        "choose_food": (
            "But $S looked so {sad|tired|hungry|small} that $n {could not eat|felt sorry|had to do "
            "something|knew what to do}.",
            "{But {to eat alone} is {no fun|not much fun}|But $n {was kind|was not greedy|had a good heart|"
            "felt sorry for $S}}, {so|and so} $n {smiled|sat down|made up $his mind}.",
            '"$well{Do not be sad|Wait|Come here|Sit down with me}, $S," $Nsaid. "{We can share|There is '
            'enough for two|I will share|Half is enough for me}."',
            "But {could $n|how could $n} eat {$X |}while $S {looked on|had nothing}? No, {$n could not|that "
            "would not do}.",
        ),
        "share_food": (
            "{$lead}$M {broke|cut|split} $X {in two|in half|{into|in} two {pieces|parts}} and {gave|gave|"
            "handed} {half|one half|one {part|piece}|the {bigger|big} {half|piece|part}} to $S.",
            '"{Here|Please|Come}, {take|have|this is} half of {my|the} $o{, $S|}," $Nsaid and {broke|cut|'
            "split} {it|$X} {in two|in half|down the middle}.",
            "{So|Then} $N {shared $X with $S|gave $S half of $X}{, {piece by piece|bit by bit|and was glad}|"
            "}.",
            "{Half|One half|A piece} for $S and {half|one half|a piece} for $Nm: $N {broke|cut|split} $X "
            "{in two|in half}.",
        ),
        "eat": (
            "$they sat {under a tree|in the grass|on a {log|stone|wall|root}|in the {sun|shade}|with bare "
            "feet} {side by side|together|back to back|face to face} and ate {$X|it} {slowly|bit by bit|to "
            "the last crumb|with a {smile|song|laugh}|without a word|and {talked|laughed|told jokes}}.",
            "$S ate {quickly|slowly|every crumb|with {big|small} bites|with closed eyes|{in|with} great "
            "joy}{, and {soon|then} $s was not hungry any more|. $S was full at last|, {bite after bite|"
            "piece after piece}, until $s was full}. {It was the {best|sweetest} $o ever.|How {good|sweet|"
            "fine} $X was!|$X {was|tasted} so {good|sweet|fine}.}",
            "{Yum|Yum, yum|Munch, munch|Mmm}! $X was {good|sweet|so good|wonderful}, and {soon|then} $S was "
            "{full|not hungry any more}.",
            "{Bite by bite|Crumb by crumb|Slowly and {happily|quietly}}, $they ate $X{ {under a tree|in the "
            "grass|on a log}|}. {Soon|Then} $S was {full|not hungry any more}.",
        ),
        "thanks_food": (
            '"$well{Thank you|Thanks|You are so kind|That was so good|Now I feel better}, $V," $Ssaid{ '
            "$skindly|}.",
            "{$lead}$S {gave $him a {big|warm} hug|smiled {again|from ear to ear}|wiped $shis mouth}. "
            '"{Thank you|Thank you so much|You are so kind}, $V," $s said.',
            '"{$well}That was the {best|nicest|sweetest} $o of all{, $V|}," $Ssaid. "{Thank you|I feel '
            'better now|You are so kind}."',
            '"{My tummy is full|I am not hungry any more|I am full} {and I am happy|now|thanks to you}{, $V|'
            '}," $Ssaid{ $skindly|}.',
        ),
        "after": (
            "{Then|After that,|To say thank you,|In return,} $S {showed $him {a {secret|quiet|shady|sunny} "
            "{place|path|spot}|the {best|tallest|oldest} tree|where the {berries|bees|stars} were} $at_p|"
            "sang a {funny|happy|little|long} song{ about {rain|bread|the moon}|}|told {a|a funny|a long} "
            "story{ about {the moon|two kings|a whale}|}|danced a {funny|little|wild} dance}.",
            "{$lead}$N was {$glad|not sorry|glad to have shared}{, and half of $X was enough|}.",
            "{Half|A piece} of {a|the} $o was {enough|more than enough|plenty}, and {$N had a friend now|$N "
            "was $glad|nobody was hungry}.",
            "{$lead}$they {talked|sang|laughed} {about {clouds|dreams|soup|$X}|for {an hour|a long time}} "
            "{$at_p|in the {grass|sun|shade}}.",
        ),
    },
    others="friend",
    hook=False,
    kept=False,
)

LONELY = Plot(
    "lonely",
    "s",
    (
        ("intro", "own"),
        ("alone_wish", "arrive"),
        ("alone_play", "look_around?"),
        ("late_new", "shy?"),
        ("hello", "answer?"),
        ("play", "glad_two"),
        ("end", "moral?"),
    ),
    {
        "hook": (
            '"$well{I wish I had a friend|I have no one to play with}," $Nsaid to $X.',
            "$N had $ao but no one to play with. $N {felt|was} {so |very |}lonely.",
        ),
        "alone_wish": (
            "But $n {{had|knew} no one to play with|was {often |very |so |}lonely|had no friends {yet|on "
            "the street|in town}|wished for {a friend|somebody to play with}}{, and the days {were|felt} "
            "long|}.",
            "{Still|But even so}, $n {was {often |very |so |}lonely|wished for a friend|had no one to play "
            "with}.",
            "But $X {cannot|could not} {talk|laugh|run|answer|tell jokes}, and $N {{had|knew} no one to "
            "play with|was {very |so |often |}lonely|wished for a friend|wanted somebody to {play|talk} "
            "with}.",
        ),
        "alone_play": (
            "$N {played|was|sat|hummed} {all |}alone with $X{ $at_p|}{ for {a while|an hour|a long time}|}, "
            "but it {was|felt} {no fun|not much fun|dull|boring|too quiet|empty|odd}{, and the {sun|time} "
            "{went|moved} slowly|}.",
            '"$well{It is no fun to play alone|I wish I had a friend|You and I are all alone|Nobody plays '
            'with us}," $Nsaid to $X.',
            "The others {had friends|played {together|far away}|laughed and ran}, and {nobody|no one} "
            "{looked at $Nm|came near|asked about $X}.",
            "{Up and down|Round and round|Back and forth|Here and there} went $X, but {with nobody {there|"
            "near|to see it}|{all |}alone} it was {no fun|dull|boring|not the same|{only|just} half the "
            "fun}.",
        ),
        "look_around": (
            "{$N|$n} {sat down|stood|waited} {under a {big |tall |}tree|by a tree|on a {stone|log|bench}|in "
            "the {grass|shade}|near the path} and {sighed|felt {sad|lonely|alone}|held $X|{hummed|kicked a "
            "stone}}.",
            "{$N|$n} {looked {left and right|up and down the {path|road}|around}|waited {and waited|for a "
            "long time|until noon}|{called|sang} once}, but {nobody {came|answered}|there was no one{ there|"
            "}|no one {came|was near}|it {was|stayed} {quiet|still}}.",
            "$N {drew {lines|circles} in the {dust|sand}|counted {clouds|leaves|stones}|hummed a {sad|slow} "
            "song}{ and {waited|sighed}|}.",
        ),
        "late_new": (
            "{Then|After a while|Not far away|Near the {wall|gate|fence}|By a tree}, $n {saw|noticed|"
            "spotted} $newS.",
            "$newS {was sitting|sat|stood|was|waited} {there, too|near a {tree|wall|bush}|on a {log|stone}|"
            "by the path|alone $at_p}.",
            "Who was that {near|behind|by|under} {the|a} {gate|wall|tree|bush|fence}? It was $newS.",
        ),
        "shy": (
            "$S {was|looked} {lonely|shy|alone}, too{, and {looked at $X|did not say a word|kicked a stone|"
            "drew in the sand}|}.",
            "$S was {all alone|new there|new in town}{ and {looked at $X|did not say a word|kicked a stone|"
            "drew in the sand}|}.",
            "{Nobody|No one} was with $S. $s {looked at $X|did not say a word|kicked a stone|drew in the "
            "sand|looked {shy|sad}}.",
            "$S {smiled a little|looked up|looked away} and {looked at $X|said nothing|waited}. {Nobody|No "
            "one} was with $shim.",
        ),
        "hello": (
            '$N {took a deep breath|was brave|smiled|stood up|waved|came {closer|near}}. "{Hello|Hi}{ there|'
            '}, {I am $V|my name is $V}," $n said. "{Do you want|Would you like} to {play|have fun|run '
            'about} with {me|my $o|$X and me}?"',
            '"{Hello|Hi|Hello there}," $Nsaid. "{I am $V|My name is $V}. {Do you like my $o|Do you want to '
            'play with my $o|Would you like to {hold|try} my $o|What do you think of my $o}?"',
            "{Step by step|Slowly|With $X in $his arms|At last|After some time}, $N {went|walked} {over |"
            "}to $S and {said {hello|a soft hello|a few words}|asked $shim to play|held out $X}.",
            '"{Would you like|Do you want} {a turn|to play} with my {$adj |}$o?" $Nasked. {It was hard to '
            "ask.|$n {smiled|waited|held it out}.}",
        ),
        "answer": (
            '"{Yes|Yes, please|Oh, yes|I would love to|I was hoping you would ask}," $Ssaid. "{{I like your '
            '$o|that is a {nice|lovely|fine} $o}|}."',
            '{$lead}$S {smiled|nodded|looked up and smiled|jumped up}. "{I like your $o|Your $o is {nice|'
            'lovely|great}|What a {nice|lovely|fine} $o}{, $V|}," $s said.',
            '"$well{Nobody asked me before|I would like that|That is {kind|nice} of you|I was lonely, '
            'too}{, $V|}," $Ssaid. $s {took|touched|held} $X {gently|carefully|with a smile}.',
            "{$lead}$S {could not believe it|blinked|looked left and right|looked around|jumped a little}. "
            '"{Me|Do you mean me|Really}? {Yes, please|Oh, yes|I would love to|I would like that}{, $V|}!" '
            "$s {said|cried|laughed}.",
        ),
        "play": (
            "{Then |So |Soon |}$N and $S {played {together|side by side}|took turns} with $X{, and {the $p "
            "was full of {laughter|songs|noise}|{it was|this was} {much|far} {better|more fun}|time flew}|}.",
            "{$lead}$they {played|ran|laughed} {all over the $p|$at_p|around a tree|in circles} with $X{ "
            "until {lunch|dinner|the sun was low}|}.",
            "{First|At first} $S {was careful with|held|tried} $X{ {gently|for a while|a little}|}, and "
            "then $they played together{ {for an hour|all day|all afternoon|until {lunch|dinner}}|}.",
            "{Up and down|Round and round|Back and forth|Here and there} went $X, {now|this time} {with two|"
            "for two}, and {$they both {laughed|smiled|sang}|{both|the two} of $them {laughed|sang}|it was "
            "{never dull|good|fun}}{ $at_p|}.",
        ),
        "glad_two": (
            '"$well{This is fun|I am so glad {you came|we met}|You are my friend now|Now I have a friend}{, '
            '$S|}," $Nsaid.',
            "$N was not lonely any more{, and {{neither|nor} was $S|$S was $glad|$S {smiled|laughed|"
            "hummed}}|, {not today|not at all}|, and $n {sang|smiled|hummed} a little}.",
            "{Now|That day|At last} $N {had a friend|was not alone}, and {nobody was lonely|all was well|"
            "the $p felt {warm|bright|full}}.",
            "{Nobody|No one} was lonely {any more|now}{, not even {a little|a bit}|}. $N {had|had found} a "
            "{good |new |real |}friend in $S{, and $X had helped|, and it {felt|was} good|}.",
        ),
    },
    others="friend",
)

PLOTS = (LOST, STUCK, BROKEN, DIRTY, WET, SHARE, SKILL, GIFT, NOISE, RETURN, HUNGRY, LONELY)
