"""Check the language of the project's texts: find marked constructions and count them per 10,000 words.

`python -m tests.language [PATH ...]` reads the whole repository, or only the given files and folders. It prints
each hit with what to write instead, then a table by kind of text. `--counts` prints only the table. The exit status
is 1 if any kind of text is above the bar.
"""

import argparse
import ast
import re
import subprocess
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BAR = 15.0  # hits per 10,000 words, in each kind of text
MAX_WORDS = 30  # in one sentence
CODE = "`_`"  # replaces inline code and placeholders

KINDS = ("docs", "docstrings", "comments", "messages", "tests: docstrings", "tests: comments")

# Files that hold data or generated code.
SKIPPED = re.compile(r"extproc/pb/|tests/(agents|fuzz/corpus|configs)/|tests/heldout\.yaml$|requirements\.lock$")
HASH_COMMENTS = {".yaml", ".yml", ".sh", ".toml", ".mk"}
HASH_COMMENT_NAMES = {"Makefile", "Dockerfile", "Kustomization", ".dockerignore", ".gitignore", "run", "kubectl"}


@dataclass(frozen=True, slots=True)
class Passage:
    """One paragraph of prose on one line, and where its pieces stand in the file."""

    kind: str
    path: str
    text: str
    starts: tuple[int, ...]  # offset in `text` at which each source line begins
    lines: tuple[int, ...]  # the number of that source line

    def line_at(self, offset: int) -> int:
        return self.lines[bisect_right(self.starts, offset) - 1]


# Extraction


def passages(path: Path, root: Path = ROOT) -> list[Passage]:
    """Return the prose of one file, by kind."""
    name = path.resolve().relative_to(root).as_posix()
    if SKIPPED.search(name):
        return []
    if path.suffix == ".md":
        return markdown(path.read_text(encoding="utf-8"), name)
    if path.suffix == ".py":
        return python(path.read_text(encoding="utf-8"), name)
    marker = "//" if path.suffix == ".proto" else "#"
    if path.suffix == ".proto" or path.suffix in HASH_COMMENTS or path.name in HASH_COMMENT_NAMES:
        comments = line_comments(path.read_text(encoding="utf-8"), marker)
        return list(comment_passages(comments, "comments", name))
    return []


FENCE = re.compile(r"\s*(```|~~~)")
LIST_ITEM = re.compile(r"\s*(?:[-*+]|\d+\.)\s+")
HEADING = re.compile(r"#+\s+")
TABLE_RULE = re.compile(r"[|\s:-]+$")


def markdown(source: str, path: str) -> list[Passage]:
    """Return the paragraphs, list items, headings and table cells of a page, without its code."""
    blocks: list[list[tuple[int, str]]] = [[]]
    fenced = False
    for number, line in enumerate(source.splitlines(), 1):
        if FENCE.match(line):
            fenced = not fenced
            blocks.append([])
        elif fenced:
            continue
        elif line.lstrip().startswith("|"):
            if not TABLE_RULE.match(line):
                blocks.extend([(number, cell)] for cell in without_code(line).strip().strip("|").split("|"))
            blocks.append([])
        elif HEADING.match(line):
            blocks += [[(number, HEADING.sub("", line))], []]
        elif not line.strip():
            blocks.append([])
        elif item := LIST_ITEM.match(line):
            blocks.append([(number, line[item.end() :])])
        else:
            blocks[-1].append((number, line))
    return [passage for block in blocks for passage in joined(block, "docs", path)]


def python(source: str, path: str) -> list[Passage]:
    """Return the docstrings, comments and messages of a module. Messages of tests are left out."""
    prefix = "tests: " if path.startswith("tests/") else ""
    tree = ast.parse(source)
    docs = docstrings(tree)
    out: list[Passage] = []
    for node, text in docs:
        out += paragraphs(text, node.lineno, prefix + "docstrings", path)
    out += comment_passages(python_comments(source), prefix + "comments", path)
    if not prefix:
        for line, message in messages(tree, {id(node) for node, _ in docs}):
            out += paragraphs(message, line, "messages", path)
    return out


def docstrings(tree: ast.Module) -> list[tuple[ast.Constant, str]]:
    """Return the docstrings of a module, its classes and functions, and the strings below fields."""
    bodies = (body for node in ast.walk(tree) if isinstance(body := getattr(node, "body", None), list))
    return [
        (statement.value, statement.value.value)
        for body in bodies
        for statement in body
        if isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ]


STRING_OR_COMMENT = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|(#[^\n]*)',
    re.DOTALL,
)


def python_comments(source: str) -> Iterator[tuple[int, int, str]]:
    """Yield line, column and text of each comment.

    Much faster than `tokenize`. Exact unless an f-string nests its own quotes, which needs Python 3.12.
    """
    line, seen = 1, 0
    for match in STRING_OR_COMMENT.finditer(source):
        if match[1] is not None:
            line += source.count("\n", seen, match.start())
            seen = match.start()
            yield line, seen - source.rfind("\n", 0, seen) - 1, match[1]


def line_comments(source: str, marker: str) -> Iterator[tuple[int, int, str]]:
    """Yield line, column and text of each comment in a file whose strings seldom hold the marker."""
    pattern = re.compile(rf"(?:^|(?<=\s)){marker}{marker[0]}*(?=\s).*")
    for number, line in enumerate(source.splitlines(), 1):
        if match := pattern.search(line):
            yield number, match.start(), match[0]


COMMENT_MARK = re.compile(r"^(#+|//+)!?\s?")
DIRECTIVE = re.compile(r"#\s*(noqa|type:|ruff:|fmt:|pragma|mypy:|syntax=|!)")


def comment_passages(comments: Iterable[tuple[int, int, str]], kind: str, path: str) -> Iterator[Passage]:
    """Join comments on consecutive lines at one column, as they are read."""
    block: list[tuple[int, str]] = []
    last = (-1, -1)
    for line, column, text in comments:
        if DIRECTIVE.match(text):
            continue
        words = COMMENT_MARK.sub("", text)
        if (line - 1, column) != last or not words.strip() or LIST_ITEM.match(words):
            yield from joined(block, kind, path)
            block = []
        block.append((line, LIST_ITEM.sub("", words, count=1)))
        last = (line, column)
    yield from joined(block, kind, path)


def paragraphs(text: str, line: int, kind: str, path: str) -> Iterator[Passage]:
    """Split a string into paragraphs and list items."""
    block: list[tuple[int, str]] = []
    for number, words in enumerate(text.split("\n"), line):
        item = LIST_ITEM.match(words)
        if not words.strip() or item:
            yield from joined(block, kind, path)
            block = []
        if words.strip():
            block.append((number, words[item.end() :] if item else words))
    yield from joined(block, kind, path)


# Strings that are not sentences: markup, patterns, SQL, formats.
NOT_PROSE = re.compile(r"[<>\\{}=|]|\bSELECT\b|\bCREATE\b|\bINSERT\b|\bDELETE FROM\b|^\s*[-/.]|://\S*$|\$\(|[;:]\w")
WORD = re.compile(r"[^\W\d_][\w'’-]*")


# Module constants that hold sample prompts, scripted answers and word lists.
DATA_NAMES = re.compile(
    r"_?(TEXT|WORDS|JUDGED|PROMPTS|GOOD|REFUSAL|COHORTS|HEDGES|(PLAIN_)?MARKS|PASTES|HARNESS|HEADINGS|SECTIONS|BANNERS"
    r"|INVOICE|PASSWORD|COURTESIES|(?:ENGLISH|OTHER)_WORDS)$"
)


def messages(tree: ast.Module, docs: set[int]) -> Iterator[tuple[int, str]]:
    """Yield line and text of the string literals that read as sentences, with a token for each placeholder."""
    skipped = docs | {id(part) for statement in tree.body if is_data(statement) for part in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in node.values)
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else CODE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if reads_as_sentence(text):
            yield node.lineno, PLACEHOLDER.sub(CODE, text)


def is_data(statement: ast.stmt) -> bool:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return any(isinstance(target, ast.Name) and DATA_NAMES.match(target.id) for target in targets)


def reads_as_sentence(text: str) -> bool:
    """Whether a literal has three words, placeholders included, and is not markup, a pattern or SQL."""
    words = len(WORD.findall(text.replace(CODE, "")))
    return (
        words >= 2
        and words + text.count(CODE) >= 3
        and len(text.split()) >= 3
        and not NOT_PROSE.search(INLINE_CODE.sub(CODE, text))
    )


INLINE_CODE = re.compile(r"(`+)[^`]+?\1")
PLACEHOLDER = re.compile(r"%(?:\(\w+\))?[-\d.]*[sdrfgx]\b|\{[\w.!:]*\}")
LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
URL = re.compile(r"\b[a-z]+://\S+|<[^<>\s]+>")
EMPHASIS = re.compile(r"\*\*|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)")


def without_code(text: str) -> str:
    """Replace inline code and URLs by a token, and links by their text."""
    return EMPHASIS.sub("", URL.sub(CODE, LINK.sub(r"\1", INLINE_CODE.sub(code_token, text))))


def code_token(code: re.Match[str]) -> str:
    """Return the token, and the line breaks that the code spans, so that line numbers stay right."""
    return CODE + "\n" * code[0].count("\n")


def joined(block: Sequence[tuple[int, str]], kind: str, path: str) -> Iterator[Passage]:
    """Make one passage of the lines of a paragraph. Code that spans a line break is replaced, too."""
    text = without_code("\n".join(words.strip() for _, words in block))
    if WORD.search(text.replace(CODE, "")):
        starts, lines, offset = [], [], 0
        for (number, _), words in zip(block, text.split("\n"), strict=True):
            starts.append(offset)
            lines.append(number)
            offset += len(words) + 1
        yield Passage(kind, path, text.replace("\n", " "), tuple(starts), tuple(lines))


# Rules


@dataclass(frozen=True, slots=True)
class Rule:
    """A marked construction, and what to write instead."""

    name: str
    pattern: re.Pattern[str]
    write: str


def rule(name: str, pattern: str, write: str) -> Rule:
    return Rule(name, re.compile(pattern), write)


START = r"(?:^|(?<=[.;:?!] )|(?<=[.?!]\) ))\(?"  # of a sentence or a main clause
END = r"(?=\s*(?:[.,;:!?)]|$))"
NO_QUESTION = r"(?=[^?]*?[.:;,])"
UNIT = (
    r"(?:request|row|cohort|tier|token|line|rule|label|question|core|exchange|machine|image|intent|session|test|task"
    r"|chunk|letter|name|word|call|kind|case|page|price|attempt|stream|worker|process|file|run|conversation|answer"
    r"|message|prompt|text|connection|round|cell|model|principal|replica)"
)

RULES = (
    rule("what-clause", START + r"[Ww]hat\b(?=[^?]*?[.:;])", "a noun: 'A rejected request is ...'"),
    rule(
        "what-object",
        r"\b(?:of|with|to|by|from|in|at|than|for|but|beside|besides|behind|under|against|after|before|into) what\b"
        r"(?! to\b|\?)",
        "the noun: 'of the answer', not 'of what was answered'",
    ),
    rule("who-clause", START + r"[Ww]ho(?:se)?\b(?=[^?]*$)", "a noun: 'The CA that signs ...', 'Users who ...'"),
    rule("all-that", r"\b[Aa]ll (?:that|who)\b", "'everything that', or the noun"),
    rule(
        "is-none",
        r"(?<![Tt]here )\b(?:is|are|was|were|be|as|of|in|with) none\b",
        "'is not one', 'is absent', 'without any'",
    ),
    rule(
        "is-no",
        r"(?<![Tt]here )\b(?:is|are|was|were|be) no (?!(?:longer|more|less|better|worse|later|earlier)\b)(?=\w)",
        "'is not a'",
    ),
    rule("told", r"\b[Tt]old\b(?! (?:\w+ ){0,2}to\b)", "'reported', 'logged', 'known', 'distinguished'"),
    rule("tell", r"\b[Tt]ell(?:s|ing)?\b(?! (?:[\w`]+ ){1,3}to\b)", "'report', 'show', 'return', 'distinguish'"),
    rule("said", r"\bsaid\b|\bsays? nothing of\b", "'reported', 'sent', 'stated', 'wrote', or the noun"),
    rule("dear", r"\b[Dd]ear(?:er|est)?\b", "'expensive', 'more expensive'"),
    rule(
        "whatever",
        r"\b(?:[Ww]ho|[Ww]hom|[Ww]hat|[Ww]hich|[Ww]here)(?:so)?ever\b",
        "'any', 'every', 'anyone who', 'regardless of'",
    ),
    rule("however-many", r"\b[Hh]owever (?=\w)", "'regardless of how many', 'for any number of'"),
    rule(
        "nobody", r"\b(?:[Ss]ome|[Nn]o|[Aa]ny|[Ee]very)body\b", "who it is: 'no client', 'the operator', 'a user'"
    ),
    rule(
        "so-many",
        r"\bso (?:many|much|long|few|often)\b(?![^.;]*\b(?:that|as)\b)",
        "'this many', 'for this long', or the number",
    ),
    rule(
        "archaic",
        r"\b(?:[Hh]ence|[Tt]hereof|[Ll]ikewise|nought|naught|whereof|anew|afresh|lest|ere|whence|thence|herein|therein"
        r"|wherein|thereby|thereto|thereafter|albeit|hitherto|shall|mend(?:s|ed|ing)?|heed(?:s|ed)?|forthwith|betwixt"
        r"|for ever|unheard)\b",
        "today's word: 'so', 'also', 'zero', 'again', 'so that ... not', 'repair', 'must'",
    ),
    rule("meanwhile", r"\bmeanwhile\b" + END, "'during that time', 'until then', or when it happens"),
    rule("at-once", r"\b[Aa]t once\b", "'at the same time', 'immediately'"),
    rule("but-for", r"\bbut for\b|\b[Ss]ave (?:that|for)\b", "'except', 'except for', 'except that'"),
    rule("besides", r"\b[Bb]esides\b|\bin turns\b", "'in addition to', 'other than', 'also'; 'alternately'"),
    rule(
        "inversion",
        r"(?:^|[:;,] )(?:may|might|must|should|need) (?:it|they|he|we|one)\b"
        r"|(?:^|[.:;,] )(?:[Ww]ere|[Hh]ad) (?:it|they|the|we|there|an?) "
        r"|\bso (?:is|are|does|do|did|has|have|was|were|will|can|may) (?:the|an?|its|their|it|what|every|each)\b",
        "subject first: 'check that it may', 'if it were', 'the batch is, too'",
    ),
    rule(
        "one-that",
        START
        + r"(?:One (?:that|who|which|whose|without|with)|Those (?:that|who|which|whose|of|without|with|in|from))\b",
        "the noun: 'A worker that ...', 'Requests that ...'",
    ),
    rule("of-first", START + r"Of (?!course\b)", "subject first: 'Everything in an outcome is ...'"),
    rule("where-first", START + r"Where\b" + NO_QUESTION, "'If', 'When', or the noun: 'The place ...'"),
    rule("where-if", r"\bwhere (?:there (?:is|are)\b|(?:it|that|one) is (?=\w))", "'if there is', 'when it is'"),
    rule("such-a", r"\b[Ss]uch an?\b", "'this', 'a ... of this kind', or repeat the noun"),
    rule(
        "of-its-own",
        r"\bof (?:its|their|his|your|our|one's) own\b|\bof (?:ours|yours|theirs|mine)\b",
        "'its own X', 'our X', 'a separate X'",
    ),
    rule(
        "nothing-but",
        r"\b(?:[Cc]annot|[Nn]one|[Nn]othing|[Nn]obody|[Aa]nything|[Aa]ll|[Ee]verything) but\b|\bin use by\b",
        "'only', 'must', 'all except', 'not a'; 'X uses it'",
    ),
    rule(
        "possessive",
        r"\bof (?:[\w`.-]+ )?[\w`.-]+(?:['’]s|s['’])"
        r"(?=\s*(?:[.,;:!?)]|$|(?:that|which|in|is|are|with|and|to|as|by|for|on|of|or|alone|may|has|will)\b))"
        r"|\b(?:is|are|was|were|stays?|not|be) (?:(?:the|an?|another|its|their|that) )?[\w`-]+(?:['’]s|s['’])"
        + END
        + r"|\b(?:is|are|was|were|not|be) (?:ours|theirs|yours|his|hers)\b",
        "the noun after the possessive: 'an Envoy message', 'is the client's value'",
    ),
    rule("become-of", r"\b(?:becomes?|became|comes?|came) of\b", "'the outcome of', 'the result of', 'happens to'"),
    rule("serves-on", r"\bserves? on" + END, "'keeps serving', 'stays active'"),
    rule("be-had", r"\b(?:be|were|was|is) had\b", "'available', 'obtained'"),
    rule("sight-of", r"\bsight of\b", "'without seeing', 'with access to'"),
    rule("speaks-of", r"\b(?:speaks?|spoken|spoke) (?:of|for)\b", "'refers to', 'describes', 'supports'"),
    rule("stands", r"\bstands? (?:twice|where|above|below|before|after|on)\b", "'appears', 'is', 'is set'"),
    rule(
        "as-it-came",
        r"\bas (?:it|they) (?:came|comes?|stands?|stood|is|are|was|were)\b" + END,
        "'unchanged', 'as received'",
    ),
    rule(
        "per-a",
        r"\b(?:[Oo]ne|[Tt]wo|[Tt]hree|[Tt]wice|[Oo]nce|ms|\d[\d,.]*"
        r"|dollars|tokens|rows|lines|utterances|texts|bytes) "
        r"(?:(?!(?:is|was|as|in|of|to|with|from|by|for|at|on|has|per|than|that|and|or|not|makes|gets|means)\b)"
        r"\w+ )?"
        r"an? " + UNIT + r"\b" + END,
        "'per request', 'for each request'",
    ),
    rule(
        "put-aside",
        r"\bput(?:s|ting)? (?:aside|otherwise)\b|\bheld against\b",
        "'queued for review', 'rephrased', 'compared with'",
    ),
    rule(
        "else",
        r"(?<!or )(?<!all )(?<!ver )(?<!/)(?<!thing )(?<!one )(?<!body )(?<!what )(?<!who )\belse\b",
        "'otherwise', 'if not'",
    ),
)
LONG = "long-sentence"
SEMICOLONS = "semicolons"
SENTENCE_END = re.compile(r"(?<=[.!?])[)\"”]? +(?=[\"“(\[]?[A-Z`])")
SENTENCE_RULES = {LONG: "two or more sentences of at most 25 words", SEMICOLONS: "one sentence for each fact"}
NAMES = (*(r.name for r in RULES), *SENTENCE_RULES)


@dataclass(frozen=True, slots=True)
class Hit:
    kind: str
    path: str
    line: int
    rule: str
    context: str
    write: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.context} (write: {self.write})"


def hits(passage: Passage) -> list[Hit]:
    """Return the marked constructions of one passage."""
    out = [
        hit(passage, each.name, match.start(), match.end(), each.write)
        for each in RULES
        for match in each.pattern.finditer(passage.text)
    ]
    start = 0
    for end in [*(m.end() for m in SENTENCE_END.finditer(passage.text)), len(passage.text)]:
        sentence = passage.text[start:end]
        if count_words(sentence) > MAX_WORDS:
            out.append(hit(passage, LONG, start, start + 30, SENTENCE_RULES[LONG]))
        if sentence.count("; ") > 1:
            out.append(hit(passage, SEMICOLONS, start, start + 30, SENTENCE_RULES[SEMICOLONS]))
        start = end
    return out


def hit(passage: Passage, name: str, start: int, end: int, write: str) -> Hit:
    first = start if name in SENTENCE_RULES else max(0, start - 30)
    context = passage.text[first : end + 40].strip()
    return Hit(passage.kind, passage.path, passage.line_at(start), name, context, write)


def count_words(text: str) -> int:
    """Count words. Code is not counted: the rates are about prose."""
    return len(WORD.findall(text.replace(CODE, " ")))


# Command


@dataclass(frozen=True, slots=True)
class Report:
    hits: list[Hit]
    words: Counter[str]  # by kind

    def rate(self, kind: str) -> float:
        """Return hits per 10,000 words."""
        found = sum(hit.kind == kind for hit in self.hits)
        return 10_000 * found / self.words[kind] if self.words[kind] else 0.0

    def table(self) -> str:
        rows = [("kind", "words", "hits", "per 10,000")]
        for kind in KINDS:
            found = sum(hit.kind == kind for hit in self.hits)
            rows.append((kind, f"{self.words[kind]}", f"{found}", f"{self.rate(kind):.1f}"))
        return "\n".join(f"{kind:<18} {words:>7} {found:>6} {rate:>11}" for kind, words, found, rate in rows)


def tracked_files(root: Path = ROOT) -> list[Path]:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return [root / name for name in names if name and (root / name).is_file()]


def examine(paths: Sequence[Path] = (), root: Path = ROOT) -> Report:
    """Check these files and folders, or the whole repository."""
    wanted = [path.resolve() for path in paths]
    files = [
        file
        for file in tracked_files(root)
        if not wanted or any(file == path or path in file.parents for path in wanted)
    ]
    report = Report([], Counter())
    for file in files:
        for passage in passages(file, root):
            report.words[passage.kind] += count_words(passage.text)
            report.hits.extend(hits(passage))
    return report


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.language", description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", help="file or folder to check (default: the repository)"
    )
    parser.add_argument("--counts", action="store_true", help="print only the table, without the hits")
    parser.add_argument("--rules", action="store_true", help="also print the number of hits of each rule")
    options = parser.parse_args(arguments)
    for path in options.paths:
        if not path.exists():
            parser.error(f"{path} does not exist")
    report = examine(options.paths, root)
    if not options.counts:
        for each in sorted(report.hits, key=lambda found: (found.path, found.line)):
            print(each)
    if options.rules:
        by_rule = Counter(found.rule for found in report.hits)
        print("\n".join(f"{name:<18} {by_rule[name]:>7}" for name in NAMES))
    print(report.table())
    return int(any(report.rate(kind) > BAR for kind in KINDS))


if __name__ == "__main__":
    sys.exit(main())
