"""Templates that every plot shares: openings, weather, feelings, endings.

A pool is a tuple of templates (grammar.py) of one or two sentences. The slots:

    $N $M $n $him $his $Ns $Nm   the main character: Tom, Tom or he, he, him, his, Tom's, (with) Tom;
                                 in the first person I, I, I, me, my, my, me
    $V                           the name of the main character in direct speech, also in the first person
    $S $T $s $shim $shis $Ss     the other character, as $N $M $n $him $his $Ns
    $they $them $their           both characters; in the first person we, us, our
    $Nsaid $Nasked $Ncried       the speaker of a quotation; $Ssaid ... for the other character
    $o $adj $ao $O               kite, red, a red kite, the or her (red) kite
    $p $at_p $to_p               park, in the park, to the park

A name, object, place or animal of world.py must come from a slot and never stand in a template itself, so
that it agrees with the rest of the story.
"""

# A story uses one value of each.
TIMES = ("day", "morning", "morning", "afternoon", "afternoon")
FINE = "sunny windy warm bright quiet fine cool clear lovely pleasant lazy busy long".split()

# The name of the plot: what the characters learn.
LESSONS = {
    "help": (
        "{it is {good|nice|fine|right} to {ask for help|have a friend|help {others|a friend}}|{good|two} "
        "friends {can do {anything|a lot}|help each other}|a {good|kind|true} friend is {worth more than "
        "any toy|the best thing of all}|{a little|a bit of} help can {do a lot|change {a day|everything}|"
        "make {everyone|people} happy}}"
    ),
    "share": (
        "{it is {good|nice|fine|right|more fun} to share|{sharing|a toy that is shared} {makes {everyone|"
        "people} happy}|a {good|kind|true} friend is {worth more than any toy|the best thing of all}}"
    ),
    "skill": (
        "{it is {good|right} {to try again|not to give up}|{hard things|new things} {take time|need "
        "practice|get easier}|a {good|kind} friend makes {hard|new} things {easier|fun}}"
    ),
    "noise": (
        "{it is {good|right|best} to {be brave|look first|look closely}|{scary|strange} {sounds|noises} can "
        "be {nice|small|friendly} things|a {good|true} friend makes {us|everyone} brave}"
    ),
    "return": (
        "{it is {good|nice|right|best} to {be honest|tell the truth|give things back}|{doing right|being "
        "honest} {makes {everyone|people} happy|feels {good|best}}|a {good|true|new} friend is worth more "
        "than any toy}"
    ),
    "gift": (
        "{it is {good|nice|more fun} to give|the best {gifts|presents} {are made with love|come from the "
        "heart}|{giving|a gift} {makes {everyone|people} happy|feels good}}"
    ),
    "hungry": (
        "{it is {good|nice|fine|right|more fun} to share|{sharing|a shared lunch} {makes {everyone|people} "
        "happy}|a {good|kind|true} friend is {worth more than anything|the best thing of all}}"
    ),
}

# Choices that are used inside sentences.
WORDS = {
    "spot": (
        "{under|behind|near|beside|next to} {{the|a} {bench|bush|big stone|old tree|tall tree|fence|log|"
        "gate|wall|tree stump|hedge|pile of leaves|table|swing}|{the|some} {flowers|rocks|leaves|bushes|"
        "stones|branches}}"
    ),
    "well": ("{||||Oh, |Well, |Ah, |My, |Hm, }"),
    "glad": ("{happy|glad|pleased|cheerful|full of joy|proud|delighted}"),
    "sad": ("{sad|upset|worried|unhappy|very sad|so sad|close to tears}"),
    "smiled": ("{smiled|laughed|grinned|giggled|beamed|cheered}"),
    "went": ("{went|walked|ran|hurried|skipped|wandered|raced|marched}"),
    "looked": ("{looked|searched|peeked|checked|peered}"),
    "day": (
        "{one $time|one $fine $time|on a $fine $time|one $time in {spring|summer|fall|winter|May|June|March|"
        "April}|after {breakfast|a nap|school|a long sleep|the rain}|when the {rain stopped|sun came up|"
        "snow was gone}}"
    ),
    "soon": (
        "{soon|after a while|a little later|before long|then|in the end|at last|after some time|not long "
        "after that|a few minutes later}"
    ),
    "sudden": (
        "{suddenly|then|all at once|just then|but then|a moment later|at that moment|all of a sudden|"
        "without any warning}"
    ),
    "how": (
        "{slowly|quickly|carefully|quietly|gently|at once|right away|with great care|bit by bit|with both "
        "hands|without a word|with a {smile|grin|nod|laugh|sigh}}"
    ),
    "skindly": ("{kindly|softly|gently|quietly|warmly|with a {smile|nod}|in a {soft|low|kind|warm} voice}"),
    "sadly": (
        "{sadly|quietly|softly|with a sigh|in a {small|low|sad|tiny|shaky} voice|with tears in $his eyes}"
    ),
    "oh": ("{Oh no|Oh dear|Oh|Oh my|Goodness|No, no}"),
    "kind": (
        "{kind|brave|cheerful|quiet|curious|clever|gentle|happy|funny|shy|playful|polite|friendly|careful|"
        "jolly|lively|bright|calm|sweet|merry}"
    ),
    "hobby": (
        "{sing|run|dance|read|climb|paint|swim|draw|jump|skip|hum {songs|little tunes}|count {clouds|stars|"
        "stones}|look for {bugs|stones|worms}|tell {jokes|stories}|ask questions|watch the {clouds|birds|"
        "rain|stars}|help {others|people|everyone}|explore|make things|play outside|pick {flowers|berries}|"
        "eat {berries|soup|jam}|laugh|whistle}"
    ),
    "home": (
        "{in a {little|small|cozy|quiet|warm|white|tall|funny|crooked|tidy|stone} {house|home|cottage} {by|"
        "near|behind|next to|at the end of} {the sea|a stream|the bridge|a {big|tall|old} tree|a {long|"
        "quiet} road|the old mill|the mountains|a {stone|white} wall}|at the edge of {town|the village|a "
        "{small|quiet} village}|in a {small|quiet|pretty|busy|friendly} {town|village}|not far from {here|"
        "the sea|the mountains|town}}"
    ),
    "giver": ("{aunt|uncle|cousin|neighbor|teacher|big sister|big brother}"),
    "X": ("{the|the|the|that} {$adj |}$o"),
    "lead": (
        "{|||||Then |So |At that, |With that, |Soon |Now |Next, |After that, |A little later, |In a moment, "
        "|At once |Before long, |After a while, |By and by, |A moment later, |There and then, }"
    ),
}

SKY = (
    "The {sky was {blue|clear|bright|pale}|sun {was {warm|bright|high}|shone}|air was {cool|warm|fresh|"
    "still|sweet}|wind was {soft|cool|strong|low}|clouds were {low|white|small|pink}} $at_p, and {the birds "
    "{sang|chirped|were {quiet|busy|loud}}|the {grass|ground} {smelled {sweet|fresh}|was {green|soft|cool|"
    "warm}}|everything {smelled of {flowers|rain|grass|leaves|honey}|felt {new|calm|slow|right}}|{bees|bugs|"
    "leaves} {danced|hummed|spun} {all around|in the {sun|light|shade}}}.",
    "{A {soft|cool|light|warm|gentle|playful} wind {blew|played|danced|whispered|moved}|The {sun|light} "
    "{danced|played|shone}|Leaves {danced|fell|spun|shook}|Bees {hummed|danced|buzzed}} {in|around|over|"
    "through} the {trees|grass|leaves|bushes|flowers} $at_p.",
    "{$at_p, it smelled of|The air $at_p smelled of|$at_p was a smell of} {grass|flowers|leaves|rain|honey|"
    "fresh bread|wet leaves|warm grass|soup} {and {sun|dust|smoke|warm bread|sweet berries}|}.",
    "{High|Far} {above|over} the $p, {a {white|small|gray|pink|lonely} cloud|a {plump|big|slow} cloud|the "
    "{moon|sun}} {moved|sailed|slid|floated|drifted} {by|past|along|over the trees|slowly}.",
    "It was {warm|cool|quiet|bright|still|lovely} $at_p, and {{nobody|no one} {was in a hurry|said a word|"
    "was about}|the {birds|leaves|bees} {sang|slept|danced|hummed}}.",
)

INTRO = (
    "{Once upon a time,|Once,|Long ago,|A long time ago,|Not long ago,|Some time ago,} there {was|lived} a "
    "{$kind |}{little |young |small |}$K {named|called} $N.",
    "{Once upon a time,|Once,|Long ago,|Some time ago,} a {$kind |}{little |young |small |}$K {named|"
    "called} $N lived $home.",
    "$N was a $kind {little |young |small |}$K who {liked|loved} to $hobby.",
    "{There was once|There once was} a {$kind |}{little |young |small |}$K {named|called} $N, who {liked|"
    "loved} to $hobby.",
    "A $kind {little |young |small |}$K {named|called} $N {liked|loved} to $hobby {and {to |}$hobby|}.",
    "$N was a {little |young |small |}$K who lived $home.",
    "{Everyone|Everybody} {in town|in the village|on the street} knew $N, a {$kind |}{little |young |small |"
    "}$K who {liked|loved} to $hobby.",
    "In a {small|quiet|busy|tiny|sleepy|pretty} {town|village|house} {lived|there lived} a {$kind |}{little "
    "|young |small |}$K {named|called} $N.",
    "{Near|Beside|Behind|Not far from} {the sea|an old bridge|a {tall|big|quiet} tree|the mountains|a stone "
    "wall} lived a {$kind |}{little |young |small |}$K {named|called} $N.",
    "{This story is|This is a story} about $N, a $kind {little |young |small |}$K who {liked|loved} to "
    "$hobby.",
    "{Some|Many} {years|summers|winters} ago, {a {$kind |}{little |young |small |}$K {named|called} $N|"
    "there was a {$kind |}{little |young |small |}$K {named|called} $N, who} {liked|loved} to $hobby.",
)

INTRO_STORYTELLER = (
    "{Do you know $N?|Have I told you about $N?|Have you heard of $N?} $N was a $kind {little |young |small "
    "|}$K who {liked|loved} to $hobby.",
    "{Let me tell you about|Here is a story about|This is the story of|I want to tell you about|Listen to "
    "the story of|Now I will tell you about} a $kind {little |young |small |}$K {named|called} $N.",
    "{Come {close|here|near}, and|Sit {down|still|here}, and|Be {still|quiet}, and} {listen|I will {tell "
    "you a story|tell you something|begin}}. There {was|lived} {once |}a {$kind |}{little |young |small |"
    "}$K {named|called} $N.",
    "{You may not believe this|Maybe you know this one|This happened long ago|You will like this}, but "
    "there was {once |}a {$kind |}{little |young |small |}$K {named|called} $N.",
)

INTRO_FIRST = (
    "My name is $V, and {I {like|love} to $hobby|I live $home}.",
    "I am $V{, and I {like|love} to $hobby|}. {This is my story.|This happened to me {last {spring|summer|"
    "fall|winter|week|month|year}|when I was {four|five|six|seven}}.|I want to tell you {something|a story|"
    "what happened}.}",
    "{Hello! |Hi! |}My name is $V. {This is my story.|I want to tell you {something|a story|what happened}.|"
    "I {like|love} to $hobby.}",
    "People call me $V{, and I {like|love} to $hobby|}. {This is my story.|This happened to me {last "
    "{spring|summer|fall|winter|week|month|year}|when I was {four|five|six|seven}}.}",
)

OWN = (
    "$M had $ao and {$n {loved|liked} it{ a lot| very much|}|it was the {best|nicest} thing in {the house|"
    "the world|$his room}|nobody {else |}had one like it|$n {took it|carried it} everywhere}.",
    "$Ns {best|favorite|dearest} {toy|thing} was $ao{, and {$n took it everywhere|it was always near|$n "
    "kept it by the bed}|}.",
    "{{Last {week|month|year|spring|summer|fall|winter}|On $his birthday|One day|Long before that}, |}$his "
    "$giver {gave|had given} $him $ao.",
    "$M {had|owned} $ao {that {came from|was from|was a gift from} $his $giver|from $his $giver}.",
    "{Of all {$his things|$his toys|the things in $his room}|More than anything}, $n {loved|liked} $ao{ "
    "most| best|}.",
    "$M {took good care of|was very proud of|was never without|played all day with|often played with} $ao.",
    "{In $his room|At home|By $his bed|On a shelf}, $n {had|kept} $ao{ {from $his $giver}|}.",
    "{There was one thing|Of {all|the many} things in {the house|$his room} there was one} $n {loved|liked} "
    "{best|most of all|more than {gold|sleep|summer}}: $ao{ {from $his $giver|with a {small|long} scratch}|"
    "}.",
)

ARRIVE = (
    "{$day, |}$N $went $to_p {with|to play with} $O{ {in $his arms|by $his side}|}.",
    "$day, $M took $O and $went $to_p{ {to play|for some fun|as fast as $n could|along the {path|road|"
    "street}}|}.",
    "$day, $M $went $to_p and took $O along{ {for fun|as always|to play with}|}.",
    "$day, $M {brought|carried|took} $O $to_p{ {to play|for some fun|to show it around}|}.",
    "{The {path|road|street|way}|A {long|short|quiet|narrow|pretty} {path|road|street}} {led|went|ran|"
    "turned} $to_p, and $day $N {took|carried|brought} $O {there|along}{ {to play|for some fun|with a {song|"
    "smile}|{all |}alone}|}.",
    '"{Today|Now|At last|This $time} {I will|I want to|let me} {play|go out|look around|go for a {walk|run}|'
    "see the {world|sun}|have {some fun|a good time}|{breathe|enjoy} the fresh air|find something to do}{ "
    'again|}," $n {said|thought|sang|laughed} $day and {took|carried|brought} $O $to_p{ {along the {path|'
    "road|street}|with a {skip|hop|jump|song}|to {play|show it around}}|}.",
)

ARRIVE_BARE = (
    "$day, $N $went $to_p{ {to play|for some fun|all alone|to look around|as fast as $n could|humming a "
    "{song|little tune}|along the {path|road|street}}|}.",
    "$day, $M {was off|set off|set out|was on $his way} $to_p{ {to play|for some fun|all alone|to look "
    "around|with a {song|smile|snack}}|}.",
    "It was a $fine $time, and $N {$went|was on $his way|set off} $to_p.",
    '"{Today|Now|At last|This $time} {I will|I want to|let me} {play|go out|look around|go for a {walk|run}|'
    "see the {world|sun}|have {some fun|a good time}|{breathe|enjoy} the fresh air|find something to do}{ "
    'again|}," $n {said|thought|sang|laughed} $day and $went $to_p{ {along the {path|road|street}|with a '
    "{skip|hop|jump|song}|all alone}|}.",
    "$day, $N $went $to_p {on {quick|light|slow} feet|with a {skip|hop|jump}|and {sang|hummed|smiled}}.",
)

BACK = (
    "{That|Earlier that|The same|Early that} {morning|day|afternoon}, $M had {gone|come|walked|run} $to_p "
    "{with|to play with} $O.",
    "{It had begun|It all began|It started} when $M {took|brought|carried} $O $to_p{ {that {morning|day|"
    "afternoon}|to play|for some fun}|}.",
    "{An hour|Two hours|Not long|A little while} {before|earlier}, $M had {taken|brought|carried} $O $to_p{ "
    "{to play|for some fun}|}.",
)

WITH_OTHER = (
    "$knownS {came|went|walked|ran|skipped} along{, too|}.",
    "$knownS {came|went} {with $him|along} {to {help|play|keep $him company|see {it|everything}}|as well}.",
    "{There|At once|Right away|By a tree|On the way} $n {met|saw} $knownS{, who {waved|smiled|said hello}|}.",
    "$knownS was {there|with $him|already there}, {too|and $they {were happy|smiled|waved}}.",
    "{Of course|As always|This time|That day} $knownS {was|came} {with $him|along}{ {to {play|help|see "
    "everything}}|}.",
    "{Who was there, too?|Somebody waved.|Somebody called hello.} It was $knownS{, {in a good mood|ready to "
    "play|all smiles}|}.",
)

OTHER_COMES = (
    "{Just then|At that moment|Soon|After a while|A little later|Then|By and by}, $newS {came|walked|ran|"
    "wandered} {by|past|along|over|up}.",
    "$newS {saw this and came {over|closer|near}|came {over|near} {to see|to help|at once}|stopped {to look|"
    "near $him}}.",
    "{Somebody|Someone} {was coming|came {by|near|along}|had seen {it|it all}}. It was $newS.",
    "{Footsteps came {closer|near}|There was a sound {behind|near} $him|Somebody coughed}. {There|Behind a "
    "tree|By the path} {was|stood} $newS.",
)

SAD = (
    "{$lead}$M {felt|was} $sad{ and {sat down|could not smile|did not know what to do|began to cry|wanted "
    "to go home}|}.",
    "{Tears {ran down $his {face|nose}|came to $his eyes|filled $his eyes}|A tear {ran|rolled} down $his "
    "{face|nose}}{, {and|for} $n {was|felt} $sad|, and {then another|$n sat down|$n could not speak}|}.",
    '"$oh! {What {now|can I do|will I do|shall I do}?|Not {my $o|$X|this}!|My {poor|dear|lovely} $o!}" '
    "$Ncried.",
    '"$oh, my {poor |dear |}$o!" $Ncried {$sadly|and {sat down|began to cry|shook $his head}}.',
    "{$lead}$N {sat down {on a {log|stone|step}|in the grass|under a tree}|shook $his head|looked at the "
    "ground|put $his {hands|face} in $his lap} and {cried {a little|for a while|softly}|felt $sad|did not "
    "{say a word|smile|move}}.",
    "{What a {sad|bad} {moment|thing}|How {sad|bad} {that|it} was}! $N {wanted to {cry|hide|go home}|felt a "
    "lump in $his throat|could not {smile|speak|laugh}}.",
)

ASK = (
    '"$well{What is wrong|What is the matter|Why are you {so sad|sad|crying}|What happened|Are you all '
    'right}, $V?" $Sasked.',
    '"{$well}$V, {what is wrong|what is the matter|why are you {so sad|sad|crying}|what happened|can I help '
    'you}?" $Sasked $skindly.',
    '"$well{You look sad|Do not cry|Do not worry|Please do not be sad|Dear me}, $V," $Ssaid. "{What is '
    'wrong|What happened|Can I help|Tell me about it|What is the matter with $X}?"',
    '$S {sat down {beside|next to} $him|came {closer|near}|took $his hand|looked at $him} and asked, "{What '
    'is wrong|What is the matter|Why are you sad|What happened|Can I help}{, $V|}?"',
    "$S {saw|could see} that $n was {sad|upset|unhappy} and {asked why|came to help|wanted to help|asked "
    "what {was wrong|had happened}}.",
    '"{Where does it hurt|Who made you sad|Is something wrong|May I help}{, $V|}?" $Sasked {$skindly|and '
    "sat down}.",
)

HELP_OFFER = (
    '"$well{I will|I can|Let me} help you{, $V|}," $Ssaid{ $skindly|}. "{Two are better than one|We can do '
    'it|Do not cry|Do not worry|Come on|Let us try|Together it is easy|I have {time|two hands|an idea}}."',
    '"$well{Do not {cry|worry|be sad}, $V|Dry your eyes, $V|Never mind, $V|Cheer up, $V|It is all right, '
    '$V}," $Ssaid{ $skindly|}. "{I will help you|We can do it together|Let us do it together|We will think '
    'of something|I have an idea}."',
    '{$lead}$T {thought {about it|for a {moment|while}|hard}|nodded|smiled} and said, "{I will help you|We '
    'can do it together|I have an idea|Let me help|I know what to do}."',
    "{$lead}$S {was {kind|a good friend|good at such things}|had {an idea|time|a plan}|did not {wait|think "
    "long}} and {wanted to help|came to help|began to help} {at once|right away|with $X}.",
    '"{I am good at|I like} {such things|hard things}," $Ssaid{ $skindly|}. "{Come|Let me see|Let us '
    'start}{, $V|}."',
)

GLAD = (
    "{$lead}$N was so $glad{ that $n {danced|jumped up and down|sang|hugged $S|clapped $his hands|laughed "
    "out loud|did a {little|funny} dance}|}.",
    '"$well{Thank you, $S|Oh, thank you, $S|Thank you so much, $S|Thanks, $S|You did it, $S|Hooray for you, '
    '$S}!" $Ncried{ and {hugged $shim|jumped up and down|clapped|held $X {tight|close|high}}|}.',
    "{$lead}$M {hugged $S|gave $S a {big|long|warm} hug|jumped up and down|clapped $his hands|danced {in a "
    'circle|around}} and {laughed.|sang.|shouted, "{Hooray|Yay|Thank you|We did it}!"|said, "{Thank you, $S|'
    'You are {so kind|a good friend|the best}, $S}."}',
    '"{$well}You are {so kind|the best|very clever|such a help|so good to me}, $S," $Nsaid{ and {hugged '
    "$shim|smiled}|}.",
    "{A {big|wide|warm|happy|slow} smile {came to|spread over|lit}|There was a {big|wide|warm|happy} smile "
    "on} $Ns face{, and $S {smiled, too|laughed|was $glad}|}.",
    '{Never|Not once} had $N {been|felt} so {happy|glad|proud}{. "{Thank you|Thanks}, $S," $n said|}.',
    "First $N {laughed|smiled|cheered}, {then|and then} $n {hugged|thanked} $S{ {again and again|for a long "
    "time|twice}|}.",
)

REPLY = (
    '"$well{You are welcome|Any time|That is what friends are for|I was glad to help|It was fun|It was '
    'nothing|I like to help}{, $V|}," $Ssaid{ $skindly|}.',
    '$S $smiled. "{You are welcome|Any time|I was glad to help|It was fun|It was nothing|We did it '
    'together}{, $V|}," $s said.',
    "$S was {$glad|happy to help|happy, too|proud, too}.",
    '$S only {smiled|laughed|nodded} and {said, "{Any time|It was {nothing|easy|fun}|You would do the '
    'same}."|took $his hand.|gave $him a wink.}',
)

END = (
    "$they {played|laughed|sang|danced} {together |with $O |}{until {the sun went down|it was {dark|time "
    "for {dinner|bed|supper}}|the stars came out|the {sky|clouds} turned {pink|red|gold}}|all {day|"
    "afternoon|morning}|for {hours|a long time|the rest of the {day|time}}}.",
    "{From {that day on|then on}|After that|Ever since that day|From that $time}, $N and $S were {good|best|"
    "the best of|close|dear} friends.",
    "{That {night|evening}|At {bedtime|the end of the day|night}|When {it was dark|night came|the stars "
    "came out}}, $M {went to {bed|sleep}|fell asleep|lay in bed|dreamed} {with a {big |}smile|with $O {by "
    "the bed|close by|beside $him}|and {dreamed|thought} of {$X|$S|{$S|$X} and {the $p|the $fine $time}}}.",
    "{Then |After that, |}$they {went|walked|ran|skipped} home {together|hand in hand|side by side|with $O|"
    "for {dinner|supper|soup|lunch|warm {milk|bread|soup}}} and {were {very |so |}$glad|told {everyone|the "
    "family|everybody} about {it|$X|the $fine $time}|sang {all the way|a {happy|funny|silly|loud} song}}.",
    "It was {a {good|happy|lovely|wonderful|great|perfect|fine}|the best} {day|$time}{ after all| for $Nm| "
    "for the two of $them| for $them both}, and {$they {smiled|laughed|sang} all the way home|nobody forgot "
    "{it|$X}|$they talked about {it|$X} {for days|for weeks|at {dinner|supper|bedtime}}|everyone was $glad}.",
    "{And so|In the end,|At last,} {$N and $S|$they|the two friends} {were {$glad|happy again}|could {smile|"
    "laugh|play} again}{, and $X was {safe|where it belonged|none the worse}|, and {all was well|the {day|"
    "$time} was saved|everything was {good|fine|right} again}}.",
    "$N never forgot {that {$fine |}$time|what $S did {for $him|that day}|how {kind|good|nice} $S {was|had "
    "been}}.",
    "$N and $S {smiled|laughed|held hands|hugged|ate {berries|bread|soup|grapes}|sat down {together|side by "
    "side}} and {watched the {sun go down|stars come out|clouds go by|sky turn {pink|gold}}|were {very |so |"
    "}$glad|felt {warm|proud|good} inside}.",
    "{The {sun|day} was {low|nearly over}|It got {late|dark|cool}|The {sky|air} turned {pink|gold|cool}}, "
    "{and|so} $N and $S went home {side by side|hand in hand|with a song|with {warm|happy} hearts}.",
    "{At home|Back home|That {night|evening}}, $N {told {everyone|the family|everybody} {about {$S|$X}|the "
    "whole story}|drew a picture of {$S|$X}}{, and {everyone|everybody} {smiled|laughed|clapped}|}.",
    "{Today|Even now|To this day} $X {makes|can make} $Nm {smile|laugh}.",
    "{And |}what a {good|fine|lovely|happy} {day|$time} it {was|had been}{ for {$Nm|the two of $them}|}! "
    "{Everyone|Everybody} was {$glad|happy}.",
)

END_STORYTELLER = (
    "{And that|That} {is|was} {how|why} {$N and $S became {good|best|dear|close} friends|$N {still |}keeps "
    "$X {by the bed|close by|safe}|$N {learned to {smile|laugh} again|never forgot $S}}.",
    "{And that, my dear,|And that|That} is {the end|all there is to tell}{, so {sleep well|good night|close "
    "your eyes}|. {Sleep well|Good night|Now {close your eyes|it is bedtime}}}.",
    "{If you {ever |}see|When you {next |}see|Should you meet} $N{ and $S|}, {say hello|wave|ask about $X|"
    "{smile|wave} and say hello}. {The end.|That is the end.|$they will be {happy|glad} to see you.}",
    "{And do you know what?|You can guess the rest.|So what {do you think|came next}?} $N and $S {were "
    "{good|best|dear} friends ever after|lived happily ever after|{played|laughed|sang} together {every day|"
    "for many years}|are still {good|best|dear} friends}.",
    "{That is|So ends|Here ends} {my|the|our} {story|tale} {about|of} {$N|$N and $S|$X}. {Sleep well|Good "
    "night|Sweet dreams}.",
    "$X is still {safe|there|with $N}, {I think|I am sure|they say}, and $N and $S are {still |}{good|best} "
    "friends.",
)

MORAL = (
    "$M {learned|found out|knew now|understood|saw} that $lesson.",
    "{That|This} {was how|is how} $N {learned|found out|came to {know|see}} that $lesson.",
    "{Now|From then on|After that|Since then|From that $time}, $n {knew|understood|always {knew|said}} that "
    "$lesson.",
)

ASIDE = (
    "{Can you {guess|believe|imagine} {that|it|what happened next}?|What would you have done?|{Do you know|"
    "And} what happened next?|{You|I} {would|might} have cried, too.|{Listen|Wait}, it gets {better|worse|"
    "funny}.|{Poor|Dear} $N!|That was {bad luck|a shame|no fun}.|I would not have liked that.|Oh, what a "
    "{day|$time}!}",
)

FRAME_OPEN = (
    "{It was {bedtime|late|dark|almost dark|raining}|The {rain fell|fire was warm|stars were out|wind blew}|"
    'Dinner was over}, and {the children|everyone} wanted a story{, so $teller {told one|began}|. "{Listen|'
    'Be still|All right}," said $teller}.',
    '"{Tell {us|me} a story|One more story|A story, please|Please tell {us|me} a story}," {said|begged|'
    "asked} the {children|little ones|twins}. {And so|So} $teller {told one|began|started}{ {softly|slowly|"
    "in a low voice|with a smile}|}.",
    "{Every {night|evening|week}|On {rainy|winter|cold|dark|snowy} {nights|evenings|days}|When {the wind "
    "blew|it rained|it was dark|it snowed}} $teller told {a story|the {children|little ones|twins} a "
    "story}{, and {this is one of them|this was {the best|one of them}|today it was this one|this one was "
    "{loved|asked for} most}|}. {It went like this.|This is {how it went|the one}.|Here it is.|Listen.}",
)

FRAME_CLOSE = (
    '{"{And that is|That was|This was} the end," {said|whispered} $teller. "{Good night|Sleep well|Now '
    '{sleep|close your eyes|off to bed}|Sweet dreams}."|$teller {smiled|yawned|stopped|was done}, and the '
    "{children|little ones|twins} {were {asleep|fast asleep|happy|$glad}|asked for {another|one more}|"
    "clapped {their hands|and cheered}|went to bed {with a smile|happily}}.}",
    '"{Is it true|Did it really happen|Was that true|And then}?" {asked|whispered} the {children|little '
    'ones|twins}. "{Who knows|Maybe|It is a story}," said $teller{ {with a smile|softly|and laughed}|}. '
    '"{Good night|Sleep well|Now {sleep|close your eyes|off to bed}|Sweet dreams}."',
)
