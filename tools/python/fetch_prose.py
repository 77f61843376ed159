"""Fetches freely licensed English prose from Debian packages and strips its markup.

Writes one text file per source (paragraphs separated by blank lines, documents by a form feed)
and SOURCES.tsv with package, version and licence. Needs apt-get and dpkg-deb; not root.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import re
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

DOCUMENT_BREAK = "\f"


@dataclasses.dataclass(frozen=True)
class Source:
    """A package, what of it is used, under which licence."""

    package: str
    licence: str
    what: str
    extract: Callable[[Path], Iterator[str]]
    needs: str = ""  # another package, unpacked beside it


def tidy(text: str) -> str:
    """Plain ASCII punctuation, one line per paragraph, no runs of blanks."""
    for old, new in {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-",
                     "\u2014": "--", "\u2026": "...", "\u00a0": " ", "\u00ad": ""}.items():
        text = text.replace(old, new)
    paragraphs = re.split(r"\n\s*\n", text)
    joined = (re.sub(r"\s+", " ", p).strip() for p in paragraphs)
    return "\n\n".join(p for p in joined if p)


def mallard_pages(root: Path) -> Iterator[str]:
    """GNOME help: Mallard XML, one document a page; keeps titles and paragraphs."""
    for page in sorted((root / "usr/share/help/C/gnome-help").glob("*.page")):
        source = re.sub(r"(?s)<(info|links)\b.*?</\1>|<!--.*?-->", "", page.read_text("utf-8"))
        parts = re.findall(r"(?s)<(?:p|title)\b[^>]*>(.*?)</(?:p|title)>", source)
        yield "\n\n".join(html.unescape(re.sub(r"<[^>]+>", "", part)) for part in parts)


def crawl_descriptions(root: Path) -> Iterator[str]:
    """Dungeon Crawl's descriptions of monsters, items and places: short vivid paragraphs."""
    folder = root / "usr/share/crawl/dat/descript"
    for name in ("monsters", "items", "features", "branches", "gods", "species", "unrand"):
        kept = []
        for entry in (folder / f"{name}.txt").read_text("utf-8").split("%%%%"):
            body = "\n".join(entry.strip().split("\n")[1:]).strip()
            if len(body) > 60 and not re.search(r"[{}<>\[\]@]|^:", body):
                kept.append(body)
        for start in range(0, len(kept), 8):
            yield "\n\n".join(kept[start:start + 8])


def rst_chapters(root: Path) -> Iterator[str]:
    """The Developer's Reference: reStructuredText sources, running text only."""
    folder = root / "usr/share/developers-reference/_sources"
    for chapter in sorted(folder.glob("*.rst.txt")):
        text = re.sub(r"(?m)^\.\. .*(?:\n[ \t]+.*)*", "", chapter.read_text("utf-8"))
        text = re.sub(r":[\w-]+:`([^`<]*)(?:<[^`]*>)?`", r"\1", text)
        text = re.sub(r"``?([^`<]*?)(?:\s*<[^`]*>)?``?_*", r"\1", text)
        kept = [p for p in re.split(r"\n\s*\n", text)
                if re.match(r"[A-Z]", p) and not re.search(r"[=~^*\"-]{4,}|::", p)]
        yield "\n\n".join(kept)


def faq_text(root: Path) -> Iterator[str]:
    """The Debian FAQ as plain text, without its table of contents."""
    packed = root / "usr/share/doc/debian/FAQ/debian-faq.en.txt.gz"
    text = zlib.decompress(packed.read_bytes(), 31).decode("utf-8")
    kept = [p for p in re.split(r"\n\s*\n", text)
            if re.match(r"\s*[A-Z]", p) and len(p) > 80 and not re.search(r"\.{5}|-{5}|\|", p)]
    for start in range(0, len(kept), 20):
        yield "\n\n".join(kept[start:start + 20])


def r_strings(blob: bytes) -> Iterator[str]:
    """The strings of an R serialisation (XDR): CHARSXP is flags ending 0x09, length, bytes."""
    position = 0
    while (position := blob.find(b"\x09", position)) >= 0:
        start = position + 5
        size = struct.unpack(">i", blob[position + 1:start])[0] if start <= len(blob) else -1
        if blob[position - 3:position - 1] == b"\x00\x04" and 0 <= size < 200:
            yield blob[start:start + size].decode("utf-8", "replace")
            position = start + size
        else:
            position += 1


def austen_novels(root: Path) -> Iterator[str]:
    """Six novels from an R lazy-load database: zlib chunks behind a length word; by chapter."""
    blob = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    position = 0
    while position + 4 < len(blob):
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(blob[position + 4:])
        position = len(blob) - len(unpacker.unused_data)
        text = "\n".join(r_strings(plain)).replace("_", "")
        for chapter in re.split(r"(?im)^\s*(?:chapter\s+[\divxlc]+|volume\s+\w+)\b.*$", text):
            if len(chapter) > 2000:
                yield chapter


def sentences(paragraphs: Iterator[str] | list[str], least: int = 120) -> Iterator[str]:
    """Groups paragraphs that are running English text into documents of 20."""
    kept = [p.strip() for p in paragraphs
            if len(p) > least and re.match(r"\s*[A-Z]", p) and p.rstrip()[-1:] in ".!?"
            and not re.search(r"[{}<>|\\$@=*_/~`]|--\w|::|\.{3}|->", p)]
    for start in range(0, len(kept), 20):
        yield "\n\n".join(kept[start:start + 20])


def pod_pages(root: Path) -> Iterator[str]:
    """Perl's manual: POD without its markup, running text only; the change logs are left out."""
    for page in sorted((root / "usr/share/perl").glob("*/pod/*.pod")):
        if "delta" not in page.name:
            text = page.read_text("utf-8", "replace")
            for _ in range(2):
                text = re.sub(r"[A-Z]<(?:<+ )?(?:[^<>|]*\|)?([^<>]*?)(?: >+)?>", r"\1", text)
            yield from sentences(p for p in re.split(r"\n\s*\n", text) if p[:1] not in " \t=")


def git_pages(root: Path) -> Iterator[str]:
    """Git's manual and tutorials: AsciiDoc, running text only."""
    for page in sorted((root / "usr/share/doc/git-doc").rglob("*.txt")):
        if "RelNotes" not in str(page):
            text = page.read_text("utf-8", "replace").replace("`", "")
            yield from sentences(re.split(r"\n\s*\n|\n\+\n", text))


def bible_chapters(root: Path) -> Iterator[str]:
    """The King James Bible, printed by the package's own reader; verse numbers removed."""
    program = [str(root / "usr/bin/bible"), "-p", str(root.parent / "bible-kjv-text/usr/lib"),
               "gen1:1-rev22:21"]
    text = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    for chapter in re.split(r"(?m)^[1-3A-Z][\w ]* \d+\n", text):
        yield re.sub(r"(?m)^ *\d+ ", "", chapter)


SOURCES = (
    Source("r-cran-janeaustenr", "public domain text (package: MIT)",
           "six novels of Jane Austen", austen_novels),
    Source("gnome-user-docs", "CC-BY-SA-3.0", "GNOME desktop help, English", mallard_pages),
    Source("crawl-common", "GPL-2+", "descriptions of monsters, items, places",
           crawl_descriptions),
    Source("developers-reference", "GPL-2+", "Debian Developer's Reference", rst_chapters),
    Source("debian-faq", "GPL-2+", "Debian FAQ", faq_text),
    Source("perl-doc", "GPL-1+ or Artistic", "Perl's manual pages", pod_pages),
    Source("git-doc", "GPL-2", "Git's manual and tutorials", git_pages),
    Source("bible-kjv", "public domain text (package: GPL-2+)", "King James Bible",
           bible_chapters, needs="bible-kjv-text"),
)


def fetch(source: Source, work: Path) -> tuple[Path, str]:
    """Downloads and unpacks a package; returns its root and version."""
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-qq", source.package], cwd=work, check=True)
    archive = max(work.glob(f"{source.package}_*.deb"), key=lambda p: p.stat().st_mtime)
    root = work / source.package
    subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
    version = subprocess.run(["dpkg-deb", "-f", str(archive), "Version"], check=True,
                             capture_output=True, text=True).stdout.strip()
    return root, version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="scratch for the packages")
    parser.add_argument("--packages", nargs="*", help="only these (default: all)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lines = ["package\tversion\tlicence\twhat\tdocuments\tcharacters"]
    for source in SOURCES:
        if args.packages and source.package not in args.packages:
            continue
        if source.needs:
            fetch(dataclasses.replace(source, package=source.needs), args.work)
        root, version = fetch(source, args.work)
        documents = [d for d in map(tidy, source.extract(root)) if len(d) > 200]
        text = DOCUMENT_BREAK.join(documents)
        (args.out / f"{source.package}.txt").write_text(text, "utf-8")
        lines.append(f"{source.package}\t{version}\t{source.licence}\t{source.what}"
                     f"\t{len(documents)}\t{len(text)}")
    (args.out / "SOURCES.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
