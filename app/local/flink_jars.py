"""What a Flink cluster has beside the jars of PyFlink: the Kafka connector, by Maven, and our own classes, compiled here."""

import hashlib
import shutil
import zipfile
from pathlib import Path

from app.local.java import fetch_jars, find_java
from app.local.process import LOCAL, ROOT, locked, run_quietly, say

CONNECTOR_POM = ROOT / "deploy" / "flink" / "pom.xml"
COMPILER_POM = ROOT / "deploy" / "flink" / "compiler" / "pom.xml"
SOURCES = ROOT / "flink_jobs" / "java"
JARS = LOCAL / "flink"


def own_and_connector(flink_lib: Path) -> tuple[Path, Path]:
    """Two folders of jars, made once and again when what they are made of has changed. flink_lib: Flink's own jars.

    Raises: SetupError without Maven or Java, or when one of them fails.
    """
    connector = fetch_jars("flink", CONNECTOR_POM, JARS / "jars")
    return _compiled(flink_lib, connector), connector


def _compiled(flink_lib: Path, connector: Path) -> Path:
    """The folder with the jar of our classes. They are few and small, and the release of Flink makes no difference to them."""
    sources = sorted(SOURCES.glob("**/*.java"))
    pom = COMPILER_POM.read_bytes()
    digest = hashlib.sha256(b"".join([pom, *(source.read_bytes() for source in sources)])).hexdigest()
    folder = JARS / "own"
    stamp = folder / "sources.sha256"
    compiler = fetch_jars("flink's compiler", COMPILER_POM, JARS / "compiler" / "jars")
    with locked(folder.parent):
        if stamp.exists() and stamp.read_text() == digest:
            return folder
        say("flink: compiling flink_jobs/java (once)")
        classes = folder.with_name("own.new")
        shutil.rmtree(classes, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        ecj = next(compiler.glob("ecj-*.jar"))
        used = ":".join(str(jar) for jars in (flink_lib, connector) for jar in jars.glob("*.jar"))
        run_quietly(
            [str(find_java()), "-jar", str(ecj), "-17", "-nowarn", "-cp", used, "-d", str(classes), *map(str, sources)],
            "compiling flink_jobs/java",
        )
        folder.mkdir()
        with zipfile.ZipFile(folder / "headrace-flink.jar", "w") as jar:
            for found in sorted(classes.glob("**/*.class")):
                jar.write(found, found.relative_to(classes))
        shutil.rmtree(classes)
        stamp.write_text(digest)
    return folder
