"""The problem of the story, from its beginning to its outcome, and what cannot be true on the way.

A thread begins ("the kite was gone"), is open, and is closed ("Tim found the kite"). While it is open,
"Lily played with the kite" contradicts it; once it is closed, so does "nobody ever found the kite".
"""

import re
from dataclasses import dataclass, field

from data.stories.checker.patterns import pattern

NEVER = re.compile(r"(?!)")  # matches nothing


@dataclass(frozen=True, kw_only=True)
class Thread:
    begins: re.Pattern
    closes: re.Pattern
    closes_by_words: re.Pattern = NEVER  # what the hero says: "I am sorry"
    closes_as_told: re.Pattern = NEVER  # although it is a denial: "not a spot was left"
    said_begins: re.Pattern = NEVER
    only_with: re.Pattern | None = None  # the rule applies only to stories that contain this
    open_denied: re.Pattern = NEVER  # false while it is open, as it is told
    open_affirmed: re.Pattern = NEVER  # false while it is open, if it is affirmed
    closed_denied: re.Pattern = NEVER
    closed_affirmed: re.Pattern = NEVER
    early: re.Pattern = NEVER  # false before it is closed
    early_said: bool = False  # whether this is also false if N or S says it
    ever: re.Pattern = NEVER  # false everywhere
    needed_by: re.Pattern = NEVER  # needs the thread to have begun
    must_be_shown: bool = False  # whether the narrator tells how it begins, and not only the hero
    gives_way_to: tuple[str, ...] = field(default=())


_HAS = r"(?:hold|hug|play with|carry|ride|fly|read|wear|wave|sit in|beat|kiss|stroke)"
_USELESS = r"never<3> (?:play|ride|fly|sail|wear|read|see)(?: with)? (?:O|it) again|(?:can|could) not (?:sail|ride|fly|play with|play|read|wear|use) (?:it|O)"
_HELPLESS = (
    _USELESS
    + r"|as<4> as (?:before|ever)|(?:nothing|not)(?: have| do| could| would)?(?: any)? help|as bad as|worse than|all be lose|in vain|too late|no use"
)
_GAVE_UP = r"O<1> (?:be|lie|sit) still (?:in|up|under|out|at the)|(?:[NSB]|they) (?:have |just |then )?give up|give up and"

THREADS = {
    "lost": Thread(
        begins=pattern(
            r"<O> (?:be|get) (?:go|lose|miss|not there|nowhere|not here|leave behind)",
            r"(?<!not )(?<!never )(?:lose|drop) <O>",
            r"(?:can|could) not (?:find|see) <O>|nothing be there|(?:vanish|disappear)",
        ),
        said_begins=pattern(
            r"N_ O be (?:go|lose|miss|not here)|N (?:have )?lose N_ O|N can not find N_ O|where be N_ O"
        ),
        closes=pattern(
            r"(?:find|pick up|hold up|hug|pull out)<2> <O>|bring <O> (?:back|to N)|pick <O> up|give<3> <O>|put O in [NS]_|have <O> back|have find",
            r"O be find|(?:be|lie|stand|really be) O|there (?:be|lie) O|not lose any more",
        ),
        closed_denied=pattern(
            r"(?:not|never|nobody)<3> (?:find|see|get|hold|touch) (?:O|it|again)",
            r"<O><1> (?:not|never)<2> (?:find|see|come back|turn up|return|show up|again)",
            r"without (?:O|it|a O)|(?:buy|have to (?:get|make)) a(?:nother)?(?: new)? O|never (?:again )?have (?:O|N_ O)",
            r"(?:not|never|nobody)<3> know where|wonder where",
            _HELPLESS,
        ),
        closed_affirmed=pattern(
            r"O<1> (?:be|stay|remain|keep)<2> (?:lose|go|miss|nowhere|away)",
            r"(?:still|ever since|every day|keep|for days|for weeks|for years|for ever)<3> (?:look|search) (?:for|everywhere)",
            r"(?<!have )(?:look|search)<1> for <O>|lose <O><2> (?:for ever|again|for good|forever)|lose for ever|go for ever",
            r"still (?:lose|miss|go)|miss O",
            _GAVE_UP,
        ),
        open_denied=pattern(
            r"O<2> (?:not|never)<1> (?:lose|go|miss)|(?<!would )(?:not|never)<1> (?:lose|let go of|drop) (?:O|it)",
            r"not let (?:go|<O>)|O (?:have )?never leave",
        ),
        open_affirmed=pattern(
            rf"N (?:still )?{_HAS}<1> O|O be (?:safe|still there|right there|in [NSB]_<1> (?:hand|arm|pocket|bag|lap))",
            r"N (?:still )?have <O> (?:in|under|with|on|safe|here)|(?:O|it) be still (?:there|here|in|on|where)|O (?:on|in) N_<1> (?:head|hand|hands|arm|arms|neck)",
        ),
        early=pattern(
            r"it be still (?:there|here)|<O><1> (?:be|lie)<1> (?:at home|under the bed|in the (?:house|kitchen|drawer)|in N_ (?:room|bag|pocket|bed))",
            r"(?:S|B|N) (?:do not|never) (?:look|search)(?! (?:at|up))|S (?:take|grab|hide|snatch) O|and hide (?:it|O)|be only an old",
        ),
        gives_way_to=("return", "gift", "hungry"),
    ),
    "stuck": Thread(
        must_be_shown=True,
        begins=pattern(
            r"(?:be|get|stay) (?:stuck|catch)|stuck (?:in|high|on|up|there|between)|(?:stuck|catch) (?:in|between|on) (?:a|the|two)"
        ),
        said_begins=pattern(r"O be (?:stuck|catch)"),
        closes=pattern(
            r"O (?:come|fall|slide|be)<1> (?:down|free|loose|out|to the ground|at N_|into N_|right into)|(?:down|out|free) (?:come|fall|go|slide)<1> (?:O|it)",
            r"(?:out|down) it come|(?:get|bring|fetch|push|pull|poke|shake)<1> <O> (?:down|free|loose|out)|it be free|catch O",
        ),
        closed_denied=pattern(
            r"(?:not|never|nobody)<3> (?:come|get|reach|bring|fetch|fall)<3> (?:down|O|it|free|there)",
            r"without (?:O|it)",
            _HELPLESS,
        ),
        closed_affirmed=pattern(
            r"<O><1> (?:be|hang|sit|stay|remain|swing)<2> (?:stuck|up there|up in|high up|in the tree|in the branches|in a tree)",
            r"still<2> (?:up|stuck|hang|in the tree|in the branches)|leave <O><2> (?:up|in the|there|hang|behind)",
            _GAVE_UP,
        ),
        open_denied=pattern(
            r"(?:no|not one|not a|not a single|without)<1> (?:tree|trees)(?! stump)",
            r"O<2> (?:not|never)<1> (?:stuck|catch|fly)",
        ),
        early=pattern(r"catch (?:O|it) (?:at once|right away|in time)|put (?:O|it) (?:back )?on N_ head"),
        open_affirmed=pattern(
            rf"N (?:still )?{_HAS}<1> O|O be (?:still )?(?:on the ground|in [NSB]_<1> (?:hand|arm|pocket|bag))|O be (?:here|on N_)|O (?:on|in) N_<1> (?:head|hand|hands|neck)"
        ),
    ),
    "broken": Thread(
        must_be_shown=True,
        begins=pattern(
            r"O lie break|(?:O|it|and|N|S|then|piece) (?:be |all )?break(?! (?:O|it|in half))|the break O|break O|(?:come|fall) apart"
        ),
        said_begins=pattern(r"(?:O|it) (?:be )?break|N break N_ O"),
        closes=pattern(
            r"(?<!to )(?<!not )(?:mend|fix|repair)|whole again|as good as new|good again|better than before"
        ),
        closes_as_told=pattern(r"(?:nobody|hardly|not)<2> see<4> break"),
        needed_by=pattern(r"(?<!to )(?:mend|repair)|whole again"),
        closed_denied=pattern(
            r"(?:not|never|nobody|nothing)<3> (?:mend|fix|repair|whole|work|glue|be good|together|make it good)",
            r"without (?:O|it)",
            _HELPLESS,
        ),
        closed_affirmed=pattern(
            r"(?:the|a|N_) break O|(?:be|stay|remain|still)<2> (?:break|in<1> pieces|apart|useless)|break for ever|throw (?:O|it|the<1> pieces|the<1> parts|pieces)<3> (?:away|into|out)|<O><1> (?:still )?have<2> (?:hole|crack)|with a<1> hole|O (?:sink|sank|go down)",
            r"(?:pieces|parts)<2> (?:still )?(?:lie|be|fall)<2> (?:apart|on the|in the|everywhere)|break again|fall apart",
            _GAVE_UP,
        ),
        ever=pattern(r"S_ (?:own )?fault|S break <O>"),
        early=pattern(
            r"not (?:a|one|a single)<1> (?:scratch|crack)|in one piece|(?:throw|toss) (?:O|it|the pieces|the parts)<1> (?:away|into the (?:bin|trash|river|fire|garbage)|out)"
        ),
        open_denied=pattern(
            r"nothing<4> happen to|O<2> (?:not|never)<2> (?:break|fall|hurt)|nothing (?:be )?wrong with",
        ),
        open_affirmed=pattern(
            r"O be<1> (?:fine|whole|all right|as good as)|N (?:play|ride|beat|drum) (?:with |on )?O"
        ),
        gives_way_to=("hungry",),
    ),
    "dirty": Thread(
        must_be_shown=True,
        begins=pattern(r"dirty|muddy|(?:in|into)<2> mud|full of mud|be<2> mud on"),
        said_begins=pattern(r"dirty|muddy|full of mud|mud on"),
        closes=pattern(
            r"(?:be|get)<3> clean|clean again|as good as new|mud (?:come off|go away|be go|run off)|spot (?:come|go)|have wash",
        ),
        needed_by=pattern(r"O<2> be<2> clean|be clean again|wash O|scrub O"),
        closes_as_told=pattern(
            r"(?:not|no)<3> (?:spot|mud|dirt|speck|trace)<4> (?:leave|any more|to see)|no longer<1> (?:dirty|muddy)"
        ),
        closed_denied=pattern(
            r"(?:not|never|nobody|nothing)<3> (?:clean|come off|wash|go away|come out)",
            _HELPLESS,
        ),
        closed_affirmed=pattern(
            r"(?:dirty|muddy) O|O<1> (?:still|stay|remain|be)<2> (?:dirty|muddy|full of mud|cover)|(?:still|as) (?:dirty|muddy|full of mud)",
            r"(?:dirtier|muddier) than|mud (?:be )?(?:still|stay|remain)|throw<4> away",
            _GAVE_UP,
        ),
        open_denied=pattern(
            r"(?:no|not a|not one|not any|not have a|without a)<2> (?:mud|spot|dirt|puddle|stain)(?! of)|<O> (?:have |be )*(?:not|never)<2> (?:dirty|muddy|touch|see)(?! any more)"
        ),
        open_affirmed=pattern(r"(?:O|it) (?:be|stay|remain|look)<1> (?:clean|spotless)"),
        early=pattern(r"O (?:stay|remain)<1> clean|no mud (?:in|at|on|by) P"),
        gives_way_to=("broken",),
    ),
    "wet": Thread(
        must_be_shown=True,
        begins=pattern(r"(?<!eyes )(?:be|get|so|very|all|the) wet|soak"),
        said_begins=pattern(r"(?:so|all|very|be) wet|full of water|drip"),
        closes=pattern(r"(?:be|get|become|until|till)<2> dry|(?:warm and|all) dry|dry again|have dry O"),
        needed_by=pattern(r"O<2> (?:be|become|get)<2> dry|(?:it|O) be (?:all )?dry|dry O"),
        closes_as_told=pattern(r"(?:not|no)<2> (?:water|drop)<4> (?:leave|any more)|no longer<1> wet"),
        closed_denied=pattern(r"(?:not|never|nobody|nothing)<3> (?:dry|dried)", _HELPLESS),
        closed_affirmed=pattern(
            r"wet O|O<1> (?:still|stay|remain|be)<2> (?:wet|soak)|(?:still|as) (?:wet|soak)|still<1> drip|water<1> (?:still )?(?:drip|run) from",
            r"wetter than|throw<4> away",
            _GAVE_UP,
        ),
        open_denied=pattern(
            r"(?:not a|no|not one|not a single)<1> (?:rain|water|cloud)|not<1> rain|never rain|(?:not a|no|not one|not a single) drop",
            r"O<2> (?:not|never)<2> wet",
        ),
        open_affirmed=pattern(r"O (?:be|stay|remain)<1> dry"),
        early=pattern(
            r"O be as dry as|dry as a bone|dry day|without a drop|O (?:stay|remain)<1> dry|not (?:one|a single) drop|sun shine all day"
        ),
    ),
    "share": Thread(
        begins=pattern(
            r"(?:not|never)<3> share|say no(?! more)|would not share|nobody else could have",
            r"(?:pull|hold) O (?:close|tight|away)|(?:turn away|run off) with O|hide O|hold on to O",
        ),
        said_begins=pattern(
            r"(?:not|never)<3> share|be N_|be mine|get S_ (?:own|O)|for N(?!_)|can not have N_|go away|no , no|^no|want it all"
        ),
        only_with=pattern(
            r"(?:may|can|could) S (?:please )?(?:hold|try|use|have|play)|have a turn|(?:not|never)<3> share"
        ),
        closes=pattern(
            r"B share|take turn|share (?:O|it)|(?:S|B) (?:have|hold|try|take) O|N_ turn|by turn|(?:sharing|to share) O|one turn for S"
        ),
        closes_by_words=pattern(
            r"be sorry|forgive|let B share|take (?:a turn|O)|have (?:a turn|O)|come and play|N be (?:mean|not kind|unkind)|for two"
        ),
        closed_denied=pattern(
            r"(?:not|never)<3> (?:let|share|give|lend)|S<2> (?:not|never|no)<3> (?:get|have|touch|turn|play|hold)",
            r"be no fun(?! to)|nobody<3> share|share<3> nobody|refuse|without<4> turn|not<2> (?:get|have)<2> turn|no turn",
        ),
        closed_affirmed=pattern(
            r"N (?:still )?(?:keep|have|hide|want|hold|take)<2> O<2> (?:for|to) N|all to N|N<1> (?:\S+ )?(?:keep|play|have|fly|ride|read|wear|hold)(?: with)? O<2> (?:alone|by N)|S only (?:look|watch)|S have to watch",
            r"(?:grab|snatch|pull)<2> O<1> (?:back|away)|N<1> push|N run (?:off|away) with O|selfish|S go home<2> (?:sad|in tears|alone)",
            r"keep O for N",
        ),
        open_affirmed=pattern(
            r"S<1> be<1> (?:happy|glad)|S<2> (?:laugh|smile|hug O|play with (?:O|it)|have fun|dance|sing)|N (?:walk|go)<1> away(?! from)|(?:N|and) take O<1> home|lock"
        ),
        early_said=True,
        early=pattern(
            r"(?:happy|glad|ready) to share|never say no|share O<1> (?:from the|right away|at once|gladly)|gladly|^of course(?=$| ,)|yes , (?:take|you|S|here|please take)|^yes$"
        ),
        ever=pattern(
            r"have never<1> (?:say no|refuse|be mean)|share<4> from the (?:start|beginning|first)|always (?:share|want to share)"
        ),
        gives_way_to=("return", "hungry", "gift"),
    ),
    "skill": Thread(
        begins=pattern(
            r"(?:can|could) not (?:\S+ )?(?:ride|fly|play O|play it|do it)|(?:go|come out) wrong|not know how to (?:ride|fly|play)|fail",
            r"N (?:want|wish|hope) to (?:ride|fly|play) (?:O|N_ O)|O would not|it do not (?:work|go well)",
        ),
        said_begins=pattern(
            r"(?:wish|if only) N (?:could|can)|wish to (?:ride|fly|play)|N would love to|N (?:can not|will never|just can not|want to|will learn to|will) (?:learn to )?(?:ride|fly|play) (?:N_ )?O"
        ),
        closes_by_words=pattern(r"N can (?:do it|ride|fly|play)|N do it|N be (?:ride|fly|play)"),
        closes=pattern(
            r"N (?:can |could )?(?:at last )?(?:ride|fly|play) (?:N_ )?O|N (?:can|could) do it|N do it"
        ),
        closed_denied=pattern(
            r"not true|(?:not|never)(?! want)<3> (?:ride|fly|play O|play it|do it|learn|manage|master|able|try it again|try again|get better|get it right)",
            r"too hard|never<1> (?:get on|touch|use|ride|fly|play|play with) (?:a )?(?:O|it)",
        ),
        closed_affirmed=pattern(
            r"N<1> (?:give up|fall off|fail|stop try)|put O away|(?:go|come out) wrong|S (?:ride|fly|play) O for N|still too hard"
        ),
        early=pattern(
            r"(?<!as if it )be (?:so |very |really )?easy|do it at once|N give (?:it |O )?up|N<1> (?:do|would|could) not try again|never try again|not want to try|work (?:right away|at once|the first time)|already<2> (?:ride|fly|play|can|could|know)|on the (?:very )?first (?:try|time)|without any (?:trouble|practice)|the best (?:at|rider|player|flyer)"
        ),
        ever=pattern(
            r"N<1> (?:be|have be) able to<5>".replace("<5>", "<4>")
            + r" (?:for|since|all)|always (?:could|can|know how|be able)|N have always",
            r"have never (?:need|want)<3> (?:learn|practice)",
        ),
        gives_way_to=("lost", "stuck", "broken", "dirty", "wet", "share", "lonely"),
    ),
    "gift": Thread(
        begins=pattern(
            r"(?:want|decide|plan|wish) to (?:give|make)(?: [^ ]+){0,9} (?:gift|present|surprise)|birthday of|S_ birthday|(?:chose|choose|decide|begin|want|set out|let N) to make a O|make a O"
        ),
        said_begins=pattern(r"(?:give|make)<3> for S|make a O|what can N give S"),
        closes=pattern(r"N<2> (?<!to )(?:give|hand)<1> (?:S|O)|hold out O|put O in S_|and give (?:S|O)"),
        closed_denied=pattern(
            r"N<2> (?:not|never)<2> (?:give|make|finish|bring)|S<2> (?:not|never)<2> (?:get|receive|like|love|want|use|wear|play|touch|have|be give)",
            r"S<1> (?:get|receive) (?:nothing|no)|(?:S<3>|and) do not get anything|S<2> (?:not|never)<2> look at|(?:no|without a) (?:gift|present)|not be give|S<1> have no O",
        ),
        closed_affirmed=pattern(
            r"N<1> (?:keep|take|hide)<2> O<4> (?:for N|home|back|alone)|keep O for N|S<1> (?:throw|hate|break|drop|tear|frown|grumble)|a frown|S<3> (?:walk|go|run) (?:off|away)|laugh at|throw<4> away",
            r"(?:take|carry) (?:O|it)<1> (?:home|back)|in vain|give <O> back|S give<2> (?:O|it) (?:away|to)",
        ),
        early=pattern(
            r"N tell S|give<4> to (?:a|another|somebody|the) [a-z]+|S<2> (?:give|make|build|buy)<2> (?:O|a O)|S<1> help|N<2> (?:not|never) finish|O<2> never<1> (?:done|do|finish|ready)"
        ),
        ever=pattern(
            r"N_ (?:own )?birthday|(?:not|no)<2> birthday|(?:buy|steal) (?:a |the )?(?:O|it)|O<2> from (?:a|the) (?:shop|store|market)|S have (?:make|build|sew|paint)<1> O",
            r"N<2> (?:not|never) make (?:a )?(?:O|it)|N make (?:this|it|O) for N|(?:somebody else|nobody) have make",
        ),
    ),
    "noise": Thread(
        begins=pattern(
            r"(?:noise|sound)<1> (?:come|from)|thump|scratch , scratch|squeak|tap , tap|bump , bump|make a<1> (?:noise|sound)|O (?:shake|move|jump)|something (?:be in|make|go|move)"
        ),
        only_with=pattern(r"noise|sound|something (?:be )?in O|open|inside|look in|peek|peer"),
        said_begins=pattern(r"thump|scratch|tap , tap|squeak|bump , bump|something in O|hear that"),
        closes=pattern(
            r"open (?:O|it)|be open|(?:look|peek|peer)<1> (?:in|inside)|out (?:come|jump|hop|climb)|come out|inside be|there sit|it be only",
        ),
        closed_denied=pattern(
            r"(?:not|never|nobody)<3> (?:open|look in|look into|look inside|peek|find out|know what|see what|learn what)",
            r"nothing<4> (?:in|inside)|O<2> empty|nothing jump",
        ),
        closed_affirmed=pattern(
            r"(?:be|feel|grow|become|still|more)<2> (?:afraid|scare|frighten)|(?:then|and|so|B|N) run away|run home<1> (?:as fast|and never|screaming)|<O><3> empty|empty O",
            r"(?:be|it be)<3> (?:monster|ghost|dragon|witch|snake|wolf|lion|tiger|crocodile|giant|bear|shark)|nothing but<2> (?:air|dust|stones|leaves)",
        ),
        early=pattern(
            r"(?:N|S) sit in (?:it|O)|(?:B|N|S) find nothing|(?:B|N|S)<1> know what (?:be|it)|(?:N|S|B) have (?:put|hide)|O (?:have|do|be)<1> (?:not|never)<2> (?:sound|noise|move)|(?:no|not a|not one|not any) (?:noise|sound)|quiet (?:all|the whole)|N be (?:not|never)<3> (?:afraid|scare)|<O> be<1> empty|leave<2> close|(?:walk|go) on$|nothing be in<1> (?:O|it)|no noise"
        ),
        early_said=True,
        ever=pattern(r"N (?:have )?(?:never|not) be<2> (?:afraid|scare)(?! any)"),
        gives_way_to=("hungry", "gift", "skill", "lost", "stuck", "broken", "dirty", "wet"),
    ),
    "return": Thread(
        begins=pattern(r"(?:find|see|pick up|notice) a O|it be a O"),
        only_with=pattern(
            r"S (?:have )?(?:lose|miss|drop|leave|can not find)<1> (?:S_ |a )?O|S_ O be go|(?:see|find) S_ O|(?:have|do) N (?:see|find) a O|give<3> back"
        ),
        said_begins=pattern(r"S (?:have )?(?:lose|miss|drop|can not find)<1> S_ O|S_ O be go"),
        closes=pattern(r"give<3> back|give <O> to S|hand<2> O"),
        closed_denied=pattern(
            r"(?:not|never)<2> (?:give|return|hand) (?:O|it|S)|S<2> (?:not|never)<3> (?:get|have|see|find|hold) (?:O|it)|S<4> without (?:O|it)|S<2> never<4> again",
        ),
        closed_affirmed=pattern(
            r"N<2> (?:keep|hide|steal) (?:O|it)|N<1> take<1> (?:O|it)<1> home|N (?:wear|still have|ride|fly|use) O|N (?:walk|go|run) (?:home|away) with O|(?:run|go|walk)<2> with O|O<2> be<1> (?:lose|go|miss)|N keep",
            r"O<2> belong to N|O<2> be N_|N (?:take|grab|snatch)<1> O<1> (?:back|away)|(?:look|search) for (?:O|S_ O)",
        ),
        early=pattern(
            r"N find nothing|leave (?:it|O) (?:where|there|behind|lie)|(?:N|and) keep (?:it|O)(?! (?:under|behind|close|in))|N (?:have )?(?:lose|buy|own)<2> (?:O|a O)"
        ),
        ever=pattern(
            r"S (?:hold|have|play with|carry)<1> S_ O|give N (?:a )?O|N_ own O|S (?:still )?have S_ O|be not S_ O|S (?:have )?(?:never|not)<1> (?:lose|have|own)<2>",
            r"O (?:have )?(?:always )?(?:be N_|belong to N)",
        ),
    ),
    "hungry": Thread(
        begins=pattern(
            r"hungry|tummy|piece for S|half of O|(?:cut|split) (?:O|it) in|break (?:O|it) in half"
        ),
        only_with=pattern(r"half|share|eat|bite|lunch"),
        said_begins=pattern(r"hungry|tummy|nothing to eat|have not have|smell"),
        closes=pattern(r"(?:break|cut|split|share|give|hand)<3> (?:O|it|half|piece|part)|half (?:of|for)"),
        closed_denied=pattern(
            r"S<2> (?:not|never|nothing)<3> (?:get|eat|taste|bite|have (?:a|one|any|anything)|touch)|N<2> (?:not|never)<1> (?:share|give)",
            r"nobody<3> share|share<3> nobody|nothing<2> for S|S<2> get nothing|give S nothing|not<2> (?:one|a single) bite|without<4> bite",
        ),
        closed_affirmed=pattern(
            r"(?:N<1>|and) (?:eat|swallow|finish|gobble|keep)<4> (?:alone|all|whole|by N|for N|self)|S<2> (?:be|feel|stay|remain|go home|go to bed)<3> (?:hungry|hungrier|starving|empty)",
            r"empty tummy|(?:still|as) hungry|throw<4> away",
        ),
        early=pattern(
            r"S<1> have eat|S<4> not eat another|S<1> (?:be|have)<1> (?:not|never)<2> hungry|S<2> (?:just|already)<2> (?:eat|have)|S be<1> full|N<1> have (?:nothing|no O|no food|not)"
        ),
        ever=pattern(
            r"O (?:be|taste)<2> (?:bad|awful|horrible|terrible|rotten)|spit|S have (?:not|never) be hungry|wish S have (?:get|have|eat)|N give S nothing|N<2> not (?:leave|give) S (?:a|any|one|anything)"
        ),
    ),
    "lonely": Thread(
        begins=pattern(
            r"lonely(?! cloud)|nobody to play with|no friends?|(?:wish|want)<1> (?:for )?(?:a friend|somebody)"
        ),
        said_begins=pattern(r"nobody to play with|wish N have a friend|lonely|no fun to play alone"),
        closes_as_told=pattern(
            r"N be not (?:alone|lonely)|nobody be<1> (?:lonely|alone)|neither<3> (?:lonely|alone)|not have to play alone"
        ),
        closes=pattern(
            r"B (?:play|take turn|run|laugh)|have<1> a<1> friend|(?:have|find)<2> friend in|this time with two|B both|now with two|with two|for two|B laugh"
        ),
        closed_denied=pattern(
            r"(?:not|never|nobody)<3> (?:meet|speak|talk|play|say a word|answer|like|friend|come back|want to play)",
            r"no friend|nobody to play with",
        ),
        closed_affirmed=pattern(
            r"N<1> (?:be|feel|stay|remain)<3> (?:lonely|lonelier|alone)|as lonely|lonelier|S<1> (?:walk|run|go|turn) away|S say no",
        ),
        early=pattern(
            r"N<2> not let S|S go home|never<1> (?:go|walk|talk|speak|say)<3> (?:to )?S|S<6> (?:not|never)<2> want to play|shake S_ head|S(?: (?!not)[^ ,]+)? (?:say no|run away|walk away|turn away)|N_<2> friend|(?:her|his|N_)<1> many friends|N (?:have|know)<1> (?:many|lots of|a lot of|hundred|plenty of|ten|five|so many)<1> friends|N<2> never<1> (?:alone|lonely)|with (?:all )?N_ friends"
        ),
        gives_way_to=("share",),
    ),
}
