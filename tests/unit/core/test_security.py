"""What settings of security must be, and that none of them shows a password."""

import subprocess
from pathlib import Path

import pytest

from app.core.errors import SetupError
from app.core.security import BrokerSecurity, StoreSecurity, is_loopback, tls_context
from app.core.settings import SECRETS, Settings, load_settings

USER = {"HEADRACE_BROKER_USER": "u", "HEADRACE_BROKER_PASSWORD": "s3cret"}
FAR = {"HEADRACE_BROKER": "kafka://127.0.0.1:9092,kafka-2:9092"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            FAR | USER,
            "HEADRACE_BROKER_TLS: must be true: there is a password, and the way to kafka-2 is open without TLS",
        ),
        (
            USER | {"HEADRACE_BROKER_MECHANISM": "PLAIN"},
            "HEADRACE_BROKER_TLS: must be true with broker_mechanism PLAIN",
        ),
        (USER | {"HEADRACE_BROKER_MECHANISM": "GSSAPI"}, "HEADRACE_BROKER_MECHANISM: must be one of SCRAM-SHA-512, "),
        ({"HEADRACE_BROKER_USER": "u"}, "HEADRACE_BROKER_PASSWORD: is missing for broker_user u"),
        ({"HEADRACE_BROKER_PASSWORD": "s3cret"}, "HEADRACE_BROKER_USER: is missing; broker_password belongs to one"),
        ({"HEADRACE_BROKER_CA": "/ca.pem"}, "HEADRACE_BROKER_CA: is used only where broker_tls is true"),
        (
            {"HEADRACE_BROKER_CA": "/no/ca.pem", "HEADRACE_BROKER_TLS": "true"},
            "HEADRACE_BROKER_CA: /no/ca.pem: No such file or directory",
        ),
        ({"HEADRACE_STORE": "redis://u:s3cret@redis:6379/0"}, "HEADRACE_STORE: must begin with rediss://: there is a"),
        (
            {"HEADRACE_STORE": "redis://redis:6379/0", "HEADRACE_STORE_PASSWORD": "s3cret"},
            "HEADRACE_STORE: must begin with rediss://: there is a password",
        ),
        (
            {"HEADRACE_STORE": "rediss://u:p@redis:6379/0", "HEADRACE_STORE_PASSWORD": "s3cret"},
            "HEADRACE_STORE_PASSWORD: is given, and store has a user or password in its address",
        ),
        ({"HEADRACE_STORE_USER": "u"}, "HEADRACE_STORE_PASSWORD: is missing for store_user u"),
        ({"HEADRACE_STORE_CA": "/ca.pem"}, "HEADRACE_STORE_CA: is used only where store begins with rediss://"),
    ],
)
def test_settings_of_security_that_contradict_are_named(environment: dict[str, str], expected: str) -> None:
    """One line, before anything is connected, without the password."""
    with pytest.raises(SetupError) as caught:
        load_settings(environment)
    assert str(caught.value).startswith(expected)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "environment",
    [
        USER,
        FAR | USER | {"HEADRACE_BROKER_TLS": "true", "HEADRACE_BROKER_MECHANISM": "PLAIN"},
        {"HEADRACE_STORE": "rediss://redis:6379/0", "HEADRACE_STORE_PASSWORD": "s3cret"},
        {"HEADRACE_STORE": "redis://:s3cret@localhost/0"},
        {"HEADRACE_STORE": "unix:///run/redis.sock", "HEADRACE_STORE_PASSWORD": "s3cret"},
    ],
)
def test_settings_of_security_that_fit_are_taken(environment: dict[str, str]) -> None:
    """A password goes out under TLS, or stays on the machine."""
    shown = load_settings(environment)
    assert "s3cret" not in repr(shown) + repr(shown.broker_security) + repr(shown.store_security)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.2", True),
        ("[::1]", True),
        ("127.example.com", False),
        ("localhost.example.com", False),
        ("10.0.0.1", False),
    ],
)
def test_is_loopback_is_not_fooled_by_names(host: str, expected: bool) -> None:
    """A name that looks like this machine's is another's."""
    assert expected == is_loopback(host)


@pytest.mark.parametrize("name", SECRETS)
def test_secret_in_a_file_is_read_without_its_line_end(tmp_path: Path, name: str) -> None:
    """As Docker and Kubernetes hand secrets over; inner spaces count."""
    (tmp_path / "secret").write_text("s3 cret \n")
    owner = {"HEADRACE_BROKER_USER": "u"} if name == "broker_password" else {}
    loaded = load_settings({f"HEADRACE_{name.upper()}_FILE": str(tmp_path / "secret")} | owner)
    assert "s3 cret " == getattr(loaded, name)


@pytest.mark.parametrize(
    ("content", "more", "expected"),
    [
        (None, {}, "secret: No such file or directory"),
        ("\n", {}, "secret is empty"),
        ("x", {"HEADRACE_STORE_PASSWORD": "y"}, "HEADRACE_STORE_PASSWORD is given too; leave one out"),
    ],
)
def test_secret_in_a_file_that_says_nothing_is_refused(
    tmp_path: Path, content: str | None, more: dict[str, str], expected: str
) -> None:
    """The variable that names the file is named."""
    if content is not None:
        (tmp_path / "secret").write_text(content)
    with pytest.raises(SetupError, match=f"^HEADRACE_STORE_PASSWORD_FILE: .*{expected}"):
        load_settings({"HEADRACE_STORE_PASSWORD_FILE": str(tmp_path / "secret")} | more)


def test_security_shows_no_password() -> None:
    """Whoever prints the struct, in a traceback or a log."""
    assert "BrokerSecurity(" in repr(BrokerSecurity(user="u", password="s3cret"))
    shown = repr(BrokerSecurity(user="u", password="s3cret")) + str(StoreSecurity(password="s3cret"))
    assert ("s3cret" in shown, shown.count("***")) == (False, 2)


def test_tls_context_of_a_file_without_certificate_is_refused(tmp_path: Path) -> None:
    """The setting is named."""
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(SetupError, match=r"^store_ca: .*ca\.pem holds no certificate in PEM form"):
        tls_context("store", StoreSecurity(ca=str(tmp_path / "ca.pem")))


def test_tls_context_with_an_encrypted_key_is_refused(tmp_path: Path) -> None:
    """Nobody is asked for a passphrase on a terminal that is not there."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:x", "-subj", "/CN=a"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    security = BrokerSecurity(tls=True, certificate=str(certificate), key=str(key))
    with pytest.raises(
        SetupError, match=r"^broker_certificate: it and broker_key are no pair in PEM form \(the key is"
    ):
        tls_context("broker", security)


def test_settings_give_all_of_security_to_the_adapters(tmp_path: Path) -> None:
    """No setting is lost on the way."""
    file = tmp_path / "pem"
    file.touch()
    values = dict.fromkeys(("ca", "certificate", "key"), str(file)) | {"user": "u", "password": "p"}
    broker = {f"broker_{name}": value for name, value in values.items()}
    store = {f"store_{name}": value for name, value in values.items()}
    loaded = Settings(broker_tls=True, broker_mechanism="SCRAM-SHA-256", store="rediss://r:1/0", **broker, **store)  # type: ignore[arg-type]
    assert BrokerSecurity(tls=True, mechanism="SCRAM-SHA-256", **values) == loaded.broker_security
    assert StoreSecurity(**values) == loaded.store_security
