"""The forms of English verbs: "found" is a form of "find"."""

import re

# Verbs: the regular ones with their stems, the others with all forms.
_REGULAR = (
    "look search hug carry play share refuse touch ask talk like love hate want wish try learn sail stop open stay walk "
    "return taste cry laugh smile help mend fix repair wash scrub clean dry drip rain climb reach fetch paint own belong "
    "remain thank hurt push kick steal wait remember believe need finish start happen move drop shout burn drown visit "
    "live work follow watch call answer reply whisper yell thank cheer clap dance hurry skip race wander march jump "
    "lick rip smash crack glue toss borrow grab snatch miss wonder promise decide discover notice spot pick yawn pull "
    "turn peek peer end close hope enjoy trust fail manage practice bake murmur exclaim sigh beg add belong join land "
    "land slip trip disappear vanish appear agree quarrel argue scare frighten punish tease ignore insult scold "
    "complain deserve solve settle prefer use save rescue free lock lift pass serve swallow chew nibble gobble crawl "
    "arrive stroll dash murmur shake nod wave rest step land invite"
).split()
_IRREGULAR = {
    "be": "is are was were am been being 's",
    "have": "has had having",
    "do": "does did done doing",
    **dict(
        row.split(":")
        for row in (
            "find:found finds finding|lose:lost loses losing|see:saw seen sees seeing|get:got gets getting gotten|"
            "give:gave given gives giving|take:took taken takes taking|hold:held holds holding|"
            "keep:kept keeps keeping|hide:hid hidden hides hiding|bring:brought brings bringing|"
            "let:lets letting|say:said says saying|tell:told tells telling|speak:spoke spoken speaks speaking|"
            "meet:met meets meeting|know:knew known knows knowing|ride:rode ridden rides riding|"
            "fly:flew flown flies flying|throw:threw thrown throws throwing|come:came comes coming|"
            "go:went gone goes going|leave:left leaves leaving|run:ran runs running|eat:ate eaten eats eating|"
            "bite:bit bitten bites biting|feel:felt feels feeling|break:broke broken breaks breaking|"
            "fall:fell fallen falls falling|tear:tore torn tears tearing|shake:shook shaken|hang:hung hangs hanging hanged|slide:slid slides sliding|choose:chose chosen|"
            "make:made makes making|buy:bought buys buying|build:built builds building|sell:sold sells selling|"
            "become:became becomes becoming|forgive:forgave forgiven forgives|forget:forgot forgotten forgets forgetting|"
            "hit:hits hitting|fight:fought fights fighting|lie:lay lied lies lying lain|sleep:slept sleeps sleeping|"
            "wake:woke woken wakes waking|sit:sat sits sitting|stand:stood stands standing|die:died dies dying|"
            "dream:dreamed dreamt dreams dreaming|begin:began begun begins beginning|send:sent sends sending|"
            "hear:heard hears hearing|sing:sang sung sings singing|swim:swam swum swims|steal:stole stolen steals|"
            "put:puts putting|think:thought thinks thinking|grow:grew grown grows growing|"
            "catch:caught catches catching|win:won wins winning|cut:cuts cutting|"
            "lend:lent lends lending|pay:paid pays paying|read:reads reading|wear:wore worn wears wearing|"
            "drive:drove driven drives driving|shine:shone shines shining|grin:grinned grins grinning|"
            "drag:dragged|drop:dropped drops dropping|rub:rubbed|hop:hopped|step:stepped|grab:grabbed|"
            "teach:taught teaches|show:showed shown shows showing|draw:drew drawn draws|spend:spent|build:built|"
            "set:sets setting|wash:washed washing washes|freeze:froze frozen|bend:bent|sew:sewed sewn"
        ).split("|")
    ),
}


def _forms() -> dict[str, str]:
    lemma_of = {}
    for verb in _REGULAR:
        stem = verb[:-1] if verb.endswith("e") else verb
        soft = verb[:-1] + "i" if re.search("[^aeiou]y$", verb) else stem
        doubled = {stem + stem[-1]} if re.search("[^aeiou][aeiou][bdgklmnprt]$", stem) else set()
        for form in {verb + "s", verb + "es", soft + "es", soft + "ed", stem + "ing"}:
            lemma_of[form] = verb
        for form in doubled:
            lemma_of[form + "ed"] = lemma_of[form + "ing"] = verb
    for verb, forms in _IRREGULAR.items():
        lemma_of |= dict.fromkeys(forms.split(), verb)
    return lemma_of


LEMMA = _forms()
# "still", "clothes" and "leaves" (of a tree) are no verbs; "found" and "thought" are.
for _noun in ("leaves", "flies", "clothes", "feeling", "being", "building", "ending", "rests", "evening"):
    LEMMA.pop(_noun, None)
