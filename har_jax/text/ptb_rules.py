r"""What a word is to COCO's tokenizer, as data: character sets, patterns and rules.

The patterns describe the language of the Stanford PTB lexer (CoreNLP 3.4.1, 2014), which COCO's
evaluation calls through Java; the syntax is that of `ptb_automaton`. Quirks are kept on purpose,
because the published scores contain them: ranges such as `,-_`, "@" names, smileys, abbreviations.
"""

from __future__ import annotations

import dataclasses

# Marks and letters beside [:letter:] that a word may hold.
_WORD_MARKS = (
    r"\u00AD\u0237-\u024F\u02C2-\u02C5\u02D2-\u02DF\u02E5-\u02FF\u0300-\u037D\u0384\u0385\u03CF"
    r"\u03F6\u03FC-\u03FF\u0483-\u0487\u04CF\u04F6-\u04FF\u0510-\u0525\u055A-\u055F\u0591-\u05BD"
    r"\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7\u0615-\u061A\u063B-\u063F\u064B-\u065E\u0670"
    r"\u06D6-\u06EF\u06FA-\u06FF\u070F\u0711\u0730-\u077F\u07A6-\u07B1\u07CA-\u07F5\u07FA"
    r"\u0900-\u0903\u093C\u093E-\u094E\u0951-\u0955\u0962\u0963\u0981-\u0983\u09BC-\u09C4\u09C7"
    r"\u09C8\u09CB-\u09CD\u09D7\u09E2\u09E3\u0A01-\u0A03\u0A3C\u0A3E-\u0A4F\u0A81-\u0A83"
    r"\u0ABC-\u0ACF\u0B82\u0BBE-\u0BC2\u0BC6-\u0BC8\u0BCA-\u0BCD\u0C01-\u0C03\u0C3E-\u0C56"
    r"\u0D3E-\u0D44\u0D46-\u0D48\u0E30-\u0E3A\u0E47-\u0E4E\u0EB1-\u0EBC\u0EC8-\u0ECD"
)
_SYMBOLS = (
    r"+%&~\^|\\\u00A6\u00A7\u00A8\u00A9\u00AC\u00AE-\u00BA\u00D7\u00F7\u0387\u05BE\u05C0\u05C3"
    r"\u05C6\u05F3\u05F4\u0600-\u0603\u0606-\u060A\u060C\u0614\u061B\u061E\u066A\u066D"
    r"\u0703-\u070D\u07F6-\u07F8\u0964\u0965\u0E4F\u1FBD\u2016\u2017\u2020-\u2023\u2030-\u2038"
    r"\u203B\u203E-\u2042\u2044\u207A-\u207F\u208A-\u208E\u2100-\u214F\u2190-\u2BFF\u3012\u30FB"
    r"\uFF01-\uFF0F\uFF1A-\uFF20\uFF3B-\uFF40\uFF5B-\uFF65"
)
_QUOTE_CHARS = (
    r"`\u2018\u2019\u201A\u201B\u201C\u201D\u0091\u0092\u0093\u0094\u201E\u201F\u2039\u203A\u00AB"
    r"\u00BB"
)

# Capitals in brackets match only as capitals: they make a rule sensitive to case on purpose.
_MONTHS = "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
_DAYS = "mon|tues?|wed|thu|thurs|fri"
_STATES = (
    "ala|ariz|[A]z|[A]rk|calif|colo|conn|ct|dak|[D]el|fla|ga|[I]ll|ind|kans?|ky|[L]a|[M]ass|md|mich"
    "|minn|[M]iss|mo|mont|neb|nev|okla|[O]re|[P]a|penn|tenn|[T]ex|va|vt|[W]ash|wisc?|wyo"
)
_COMPANIES = "inc|cos?|corp|pp?t[ye]s?|ltd|plc|rt|bancorp|bhd|assn|univ|intl|sys"
_TITLES = (
    "mr|mrs|ms|[M]iss|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs|govs?|adm|rev|maj|sgt|cpl"
    "|pvt|capt|ste?|ave|pres|lieut|hon|brig|co?mdr|pfc|spc|supts?|det|mt|ft|adj|adv|asst|assoc|ens"
    "|insp|mlle|mme|msgr|sfc"
)
_OTHERS_BEFORE_LOWER = "tel|est|ext|sq|jr|sr|bros|blvd|rd|esq|etc|al|seq|bldg"
_OTHERS_BEFORE_UPPER = "vs|alex|wm|jos|cie|cf|treas|ph|invt|elec|natl|m[ft]g|dept"
_BEFORE_NUMBER = "ca|figs?|prop|nos?|art|bldg|pp|op"
_BEFORE_LTD = "pt[eyEY]|co"

ABBREVIATIONS = (
    f"[A-Za-z]|{_MONTHS}|{_DAYS}|{_STATES}|{_COMPANIES}|{_TITLES}|{_OTHERS_BEFORE_LOWER}"
    f"|{_OTHERS_BEFORE_UPPER}|{_BEFORE_NUMBER}|{_BEFORE_LTD}"
)
"""A Python pattern that matches, without regard to case, every word of letters alone that some
rule reads together with a period; it may match more."""

# Words after which "U.S." and the like end a sentence.
_SENTENCE_STARTS = (
    "[A]bout|[A]ccording|[A]dditionally|[A]fter|[A]n|[A]|[A]s|[A]t|[B]ut|[E]arlier|[H]e|[H]er"
    "|[H]ere|[H]owever|[I]f|[I]n|[I]t|[L]ast|[M]any|[M]ore|[M]r\\.|[M]s\\.|[N]ow|[O]nce|[O]ne"
    "|[O]ther|[O]ur|[S]he|[S]ince|[S]o|[S]ome|[S]uch|[T]hat|[T]he|[T]heir|[T]hen|[T]here|[T]hese"
    "|[T]hey|[T]his|[W]e|[W]hen|[W]hile|[W]hat|[Y]et|[Y]ou|{MARKUP}"
)
_ATTRIBUTE = r"[A-Za-z][A-Za-z0-9_:.\-]*"

DEFINITIONS = {
    # Space and lines
    "SPACE": r"[ \t\u00A0\u2000-\u200A\u3000]",
    "NEWLINE": r"(\r|\r?\n|[\u2028\u2029\u000B\u000C\u0085])",
    "BLANK": r"({SPACE}|{NEWLINE})",
    "SENTENCE_END": r"{BLANK}({BLANK}|[[:uppercase:]]|{MARKUP})",
    "MARKUP": (
        r"<([!?][A-Za-z\-][^>\r\n]*"
        rf"|[A-Za-z][A-Za-z0-9_:.\-]*([ ]+({_ATTRIBUTE}"
        rf"|{_ATTRIBUTE}[ ]*=[ ]*('[^']*'|\"[^\"]*\")))*[ ]*/?"
        r"|/[A-Za-z][A-Za-z0-9_:.\-]*)[ ]*>"
    ),
    # Characters
    "AMP": "&amp;",
    "ACCENTED": "&[aeiouAEIOU](acute|grave|uml);",
    "DIGIT": r"[[:digit:]\u07C0-\u07C9]",
    "LETTER": rf"([[:letter:]{_WORD_MARKS}]|{{ACCENTED}})",
    "ALNUM": "[[:letter:][:digit:]]",
    "APOS": r"(['\u0092\u2019]|&apos;)",
    "ANY_APOS": r"({APOS}|[`\u0091\u2018\u201B])",
    "HYPHEN": r"[\-_\u058A\u2010\u2011]",
    "CLAUSE_MARK": r"[,;:\u3001]",
    # Words
    "WORD": r"{LETTER}({LETTER}|{DIGIT})*([.!?]{LETTER}({LETTER}|{DIGIT})*)*",
    "ELISION": "[dDoOlL]{ANY_APOS}{ALNUM}",
    "THING": "({ELISION})?{ALNUM}+({HYPHEN}({ELISION})?{ALNUM}+)*",
    "AND_THING": r"[A-Z]+(([+&]|{AMP})[A-Z]+)+",
    "HYPHENATED": r"[A-Za-z0-9][A-Za-z0-9.,\u00AD]*(\-([A-Za-z0-9\u00AD]+|{ACRONYM2}\.))+",
    "SLASHED": (r"[A-Za-z0-9]+(\-[A-Za-z]+){0,2}(\\?/[A-Za-z0-9]+(\-[A-Za-z]+){0,2}){1,2}"),
    "CLITIC": "{APOS}([msdMSD]|re|ve|ll)",
    "NOT": "n{ANY_APOS}t",
    "BEFORE_NOT": r"[A-Za-z\u00AD]*[A-MO-Za-mo-z]\u00AD*",
    "APOS_WORD": (
        "{APOS}n{APOS}?|[lLdDjJ]{APOS}|dunkin{APOS}|somethin{APOS}|ol{APOS}|{APOS}em"
        "|[A-HJ-XZn]{ANY_APOS}[[:letter:]][[:letter:]]+|{APOS}[2-9]0s|{APOS}till?"
        "|[[:letter:]]+[aeiouyAEIOUY]{ANY_APOS}[aeiouA-Z][[:letter:]]*|{APOS}cause|cont'd\\.?"
        "|'twas|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|o{ANY_APOS}o"
    ),
    # Numbers
    "NUMBER": (r"[\-+]?({DIGIT}+|{DIGIT}*([.:,\u00AD\u066B\u066C]{DIGIT}+)+)"),
    "DATE": r"{DIGIT}{1,2}[\-/]{DIGIT}{1,2}[\-/]{DIGIT}{2,4}",
    "FRACTION": r"({DIGIT}{1,4}[\- \u00A0])?{DIGIT}{1,4}(\\?/|\u2044){DIGIT}{1,4}",
    "PHONE": (
        r"(\([0-9]{2,3}\)[ \u00A0]?|(\+\+?)?([0-9]{2,4}[\- \u00A0])?[0-9]{2,4}[\- \u00A0])"
        r"[0-9]{3,4}[\- \u00A0]?[0-9]{3,5}"
        r"|((\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
    ),
    # Addresses and files
    "URL": r"https?://[^ \t\n\f\r\"<>|(){}]+[^ \t\n\f\r\"<>|.!?(){},\-]",
    "SITE": (
        r"((www\.([^ \t\n\f\r\"<>|.!?(){},]+\.)+[a-zA-Z]{2,4})"
        r"|(([^ \t\n\f\r\"`'<>|.!?(){},-_$]+\.)+(com|net|org|edu)))"
        r"(/[^ \t\n\f\r\"<>|()]+[^ \t\n\f\r\"<>|.!?(){},\-])?"
    ),
    "EMAIL": (
        r"(&lt;|<)?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00A0{}]*@"
        r"([^ \t\n\f\r\"<>|(){}.\u00A0]+\.)*([^ \t\n\f\r\"<>|(){}.\u00A0]+)(&gt;|>)?"
    ),
    "FILE": (
        r"({LETTER}|{DIGIT})+([.]({LETTER}|{DIGIT})+)*[.]"
        r"(bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl"
        r"|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip)"
    ),
    # Abbreviations
    "COUNTRY_US": r"(canada|sino|korean|eu|japan|non)\-u\.s|u\.s\.\-(u\.k|u\.s\.s\.r)",
    "ACRONYM1": r"([A-Za-z](\.[A-Za-z])*|{COUNTRY_US})",
    "ACRONYM2": r"([A-Za-z](\.[A-Za-z])+|{COUNTRY_US})",
    "BEFORE_LOWER": (
        rf"({_MONTHS}|{_DAYS}|{_STATES}|{_COMPANIES}|{_OTHERS_BEFORE_LOWER}|(ed|ph)\.d)\."
    ),
    "BEFORE_UPPER": (rf"({_TITLES}|{_OTHERS_BEFORE_UPPER}|a\.k\.a|{{ACRONYM1}})"),
    "BEFORE_NUMBER": rf"({_BEFORE_NUMBER})\.",
    # Quotes
    "DOUBLE_QUOTE": '("|&quot;)',
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A kind of token.

    Attributes:
      pattern: the token's text.
      action: what becomes of it, see `ptb`.
      tail: what must follow, if anything; it counts towards the longest match.
      argument: of the action.
    """

    pattern: str
    action: str = "keep"
    tail: str = ""
    argument: str | int = 0


# Of equally long matches the earlier rule wins.
RULES = (
    Rule("c[+][+]"),
    Rule("(c|f)#"),
    Rule("cannot", "split", argument=3),
    Rule("'twas", "split", argument=3),
    Rule("'tis", "split", argument=2),
    Rule("gonna|gotta|lemme|gimme|wanna", "split", argument=2),
    Rule("{MARKUP}", "spaces"),
    Rule(r"&(md|mdash|ndash);|[\u0096\u0097\u2013-\u2015]", "text", argument="--"),
    Rule("{AMP}", "ampersand"),
    Rule("&(ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);"),
    Rule("{WORD}", "soft", "{CLITIC}"),
    Rule("{BEFORE_NOT}", "soft", "{NOT}"),
    Rule("{WORD}", "soft"),
    Rule("{APOS_WORD}"),
    Rule("y{APOS}", tail="[[:letter:]]"),
    Rule("{URL}"),
    Rule("{SITE}"),
    Rule("{EMAIL}"),
    Rule("@[a-zA-Z_][a-zA-Z_0-9]*|#{LETTER}+"),
    Rule("{CLITIC}", "right", "[^A-Za-z]"),
    Rule("{NOT}", "right", "[^A-Za-z]"),
    Rule("{DATE}"),
    Rule("{NUMBER}", "soft"),
    Rule(
        r"[\u207A\u207B\u208A\u208B]?"
        r"([\u2070\u00B9\u00B2\u00B3\u2074-\u2079]+|[\u2080-\u2089]+)"
    ),
    Rule("{FRACTION}", "spaces"),
    Rule(r"[\u00BC\u00BD\u00BE\u2153-\u215E]", "fraction"),
    Rule(
        r"\-(rrb|lrb|rcb|lcb|rsb|lsb)\-|c\.d\.s|pro\-|anti\-|s(&|{AMP})p\-500|s(&|{AMP})ls"
        r"|cap{APOS}n|c{APOS}est",
        "ampersand",
    ),
    Rule("{SLASHED}"),
    Rule(r"[A-Z]*\$|#"),
    Rule(
        r"[\u00A2\u00A3\u00A4\u00A5\u0080\u20A0\u20AC\u060B\u0E3F\u20A4\uFFE0\uFFE1\uFFE5\uFFE6]",
        "currency",
    ),
    Rule(r"{ACRONYM1}\.", "acronym", rf"{{BLANK}}+({_SENTENCE_STARTS}){{BLANK}}"),
    Rule("{BEFORE_NUMBER}", tail="{BLANK}?[[:digit:]]"),
    Rule(rf"({_BEFORE_LTD})\.", tail="{SPACE}(ltd|lim)"),
    Rule("{BEFORE_LOWER}", "again", "{SENTENCE_END}"),
    Rule("{BEFORE_LOWER}", tail=r"[^][^]"),
    Rule("{BEFORE_LOWER}", "again"),
    Rule(r"{BEFORE_UPPER}\."),
    Rule("{BEFORE_UPPER}", tail="{SPACE}"),
    Rule("{ACRONYM1}", tail="{BLANK}"),
    Rule("{APOS}[0-9][0-9]", tail="{BLANK}"),
    Rule("{FILE}", tail="({BLANK}|[.?!,])"),
    Rule(r"{WORD}\.", "soft", "{CLAUSE_MARK}"),
    Rule("{PHONE}", "phone"),
    Rule("{DOUBLE_QUOTE}", "left", "[A-Za-z0-9$]"),
    Rule("{DOUBLE_QUOTE}", "right"),
    Rule(r"\u007F", "drop"),
    Rule("<|&lt;", "text", argument="<"),
    Rule(">|&gt;", "text", argument=">"),
    Rule(r"[<>]?[:;=][\-o*']?[()DPdpO\\{@|\[\]]", "brackets", "[^A-Za-z0-9]"),
    Rule(
        # The first branch is a slip in the lexer (an escaped bracket); hardly any text has it.
        r"[\^x=~<>]\.\[\^x=[^<]*<>\]|[\-\^x=~<>']_[\-\^x=~<>']"
        r"|\([\-\^x=~<>'][_.]?[\-\^x=~<>']\)|\([\^x=~<>']\-[\^x=~<>'`]\)",
        "brackets",
    ),
    Rule(r"\{", "text", argument="-LCB-"),
    Rule(r"\}", "text", argument="-RCB-"),
    Rule(r"\[", "text", argument="-LSB-"),
    Rule(r"\]", "text", argument="-RSB-"),
    Rule(r"\(", "text", argument="-LRB-"),
    Rule(r"\)", "text", argument="-RRB-"),
    Rule(r"\-+", "dashes"),
    Rule(r"\.{3,5}|(\.[ \u00A0]){2,4}\.|[\u0085\u2026]", "text", argument="..."),
    Rule("@+|#+|_+"),
    Rule(r"\*+|(\\\*){1,3}"),
    Rule("{CLAUSE_MARK}"),
    Rule("[?!]+"),
    Rule(r"[.\u00A1\u00BF\u037E\u0589\u061F\u06D4\u0700-\u0702\u07FA\u3002]"),
    Rule("="),
    Rule("/"),
    Rule(r"{HYPHENATED}\.", "soft", "{CLAUSE_MARK}"),
    Rule("{HYPHENATED}", "soft"),
    Rule(r"{THING}\.", tail="{CLAUSE_MARK}"),
    Rule("{THING}"),
    Rule(r"{AND_THING}\.", "ampersand", "{CLAUSE_MARK}"),
    Rule("{AND_THING}", "ampersand"),
    Rule("'", "left", r"[A-Za-z][^ \t\n\r\u00A0]"),
    Rule("{CLITIC}", "right"),
    Rule("{NOT}", "right"),
    Rule(rf"{{APOS}}|''|[{_QUOTE_CHARS}]{{1,2}}", "right"),
    Rule("<<|>>"),
    Rule(f"[{_SYMBOLS}]"),
    Rule(r"\0|{SPACE}+|[\u200B\u200E\u200F\uFEFF]", "drop"),
    Rule("{NEWLINE}", "drop"),
    Rule("&nbsp;", "drop"),
    Rule(r"[^\n]", "drop"),
)
