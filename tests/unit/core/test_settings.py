"""Settings: where they come from, and what each wrong one says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.errors import Rejected, SetupError
from app.core.settings import Settings, in_one_form, load_settings

Project = Callable[[str], Path]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Writes a pyproject.toml with these lines under [tool.headrace]."""

    def write(lines: str) -> Path:
        (tmp_path / "pyproject.toml").write_text(f"[tool.headrace]\n{lines}\n")
        return tmp_path

    return write


def test_load_settings_of_nothing_are_the_defaults(tmp_path: Path) -> None:
    """Without file, variable and option there is a complete set."""
    assert Settings() == load_settings({}, tmp_path)


def test_load_settings_later_source_wins(project: Project) -> None:
    """File, then environment, then command line."""
    folder = project('model = "file"\nreplication = 1\nmodel_concurrency = 8')
    loaded = load_settings({"HEADRACE_MODEL": "variable", "HEADRACE_REPLICATION": "2"}, folder, {"model": "option"})
    assert ("option", 2, 8) == (loaded.model, loaded.replication, loaded.model_concurrency)


def test_load_settings_option_not_given_is_passed_over() -> None:
    """None on the command line is no value."""
    assert "variable" == load_settings({"HEADRACE_MODEL": "variable"}, overrides={"model": None}).model


def test_load_settings_foreign_variable_is_ignored() -> None:
    """Only our prefix counts."""
    assert Settings() == load_settings({"PATH": "/bin", "KAFKA_BROKER": "x"})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HEADRACE_BROKR": "x"}, "HEADRACE_BROKR: unknown setting; there are "),
        ({"HEADRACE_REPLICATION": "three"}, "HEADRACE_REPLICATION: must be a whole number, not 'three'"),
        ({"HEADRACE_BROKER_TLS": "maybe"}, "HEADRACE_BROKER_TLS: must be true or false, not 'maybe'"),
        ({"HEADRACE_REPLICATION": "0"}, "HEADRACE_REPLICATION: must be at least 1"),
        ({"HEADRACE_MODEL_CONCURRENCY": "257"}, "HEADRACE_MODEL_CONCURRENCY: must be 1 to 256"),
        ({"HEADRACE_BROKER": "localhost:9092"}, "HEADRACE_BROKER: must begin with kafka://, aiokafka:// or memory://"),
        ({"HEADRACE_STORE": "6379"}, "HEADRACE_STORE: must begin with redis://, rediss://, unix:// or memory://"),
        ({"HEADRACE_MODEL_ATTEMPT_MS": "25000"}, "HEADRACE_MODEL_ATTEMPT_MS: 25000 must be shorter than drain_ms"),
        ({"HEADRACE_MODEL_ATTEMPT_MS": "0"}, "HEADRACE_MODEL_ATTEMPT_MS: must be more than 0"),
        (
            {"HEADRACE_MODEL_REQUESTS_PER_MINUTE": "-1"},
            "HEADRACE_MODEL_REQUESTS_PER_MINUTE: must not be negative; 0 is for what the API's headers say",
        ),
        ({"HEADRACE_DRAIN_MS": "30000"}, "HEADRACE_DRAIN_MS: 30000 must be shorter than grace_ms, which is 30000"),
        ({"HEADRACE_DRAIN_MS": "5000"}, "HEADRACE_MODEL_ATTEMPT_MS: 8000 must be shorter than drain_ms, which is 5000"),
        ({"HEADRACE_GROUP_PROTOCOL": "eager"}, "HEADRACE_GROUP_PROTOCOL: must be one of consumer, classic"),
        ({"HEADRACE_INSTANCE": "pod 1"}, "HEADRACE_INSTANCE: may hold 249 letters, digits, dots, dashes"),
        (
            {"HEADRACE_BROKER": "aiokafka://a:1", "HEADRACE_INSTANCE": "pod-1"},
            "HEADRACE_BROKER: aiokafka:// knows neither",
        ),
        ({"HEADRACE_LOG_LEVEL": "loud"}, "HEADRACE_LOG_LEVEL: must be one of debug, info, warning, error"),
        ({"HEADRACE_MODE": "lively"}, "HEADRACE_MODE: must be one of live, shadow, dry-run"),
        ({"HEADRACE_MODEL_URL": "127.0.0.1:8090"}, "HEADRACE_MODEL_URL: must begin with http://"),
        (
            {"HEADRACE_ACTION_URL_BLOCK_TRANSACTION": "shop"},
            "HEADRACE_ACTION_URL_*: that of block_transaction must begin with http://",
        ),
        (
            {"HEADRACE_ACTION_URL_BLOCK_TRANSACTION": "https:///path"},
            "HEADRACE_ACTION_URL_*: that of block_transaction must begin with http://",
        ),
        ({"HEADRACE_MODEL_URL": "http://host:port"}, "HEADRACE_MODEL_URL: must begin with http://"),
        (
            {"HEADRACE_MODEL_URL": "http://proxy.example"},
            "HEADRACE_MODEL_URL: must begin with https://: there is an API key, and the way to proxy.example is open",
        ),
        (
            {"HEADRACE_ACTION_URL_BLOCK": "http://pay.example/", "HEADRACE_ACTION_TOKEN": "x"},
            "HEADRACE_ACTION_URL_*: that of block must begin with https://: there is a token or password",
        ),
        (
            {"HEADRACE_ACTION_URL_BLOCK": "HTTP://shop:pa55@pay.example/"},
            "HEADRACE_ACTION_URL_*: that of block must begin with https://: there is a token or password",
        ),
        ({"HEADRACE_PAGERDUTY_URL": ""}, "HEADRACE_PAGERDUTY_URL: must begin with http:// or https:// and name a host"),
        (
            {"HEADRACE_PAGERDUTY_URL": "http://pages.example/", "HEADRACE_PAGERDUTY_ROUTING_KEY": "x"},
            "HEADRACE_PAGERDUTY_URL: must begin with https://: there is a routing key, and the way to pages.example is open",
        ),
        ({"HEADRACE_ACTION_TIMEOUT_MS": "0"}, "HEADRACE_ACTION_TIMEOUT_MS: must be more than 0"),
        (
            {"HEADRACE_ACTION_TIMEOUT_MS": "25000"},
            "HEADRACE_ACTION_TIMEOUT_MS: 25000 must be shorter than drain_ms, which is 25000",
        ),
    ],
)
def test_load_settings_wrong_variable_is_named(environment: dict[str, str], expected: str) -> None:
    """The error begins with the variable as the user wrote it."""
    with pytest.raises(SetupError) as caught:
        load_settings(environment)
    assert str(caught.value).startswith(expected)


def test_load_settings_table_as_a_variable_shows_no_secret() -> None:
    """Addresses may hold passwords; what to do instead is said."""
    with pytest.raises(SetupError) as caught:
        load_settings({"HEADRACE_ACTION_URLS": '{"block": "https://shop:pa55@pay.example/"}'})
    expected = "HEADRACE_ACTION_URLS: must be a table of texts in pyproject.toml; as variables, one an action: "
    assert f"{expected}HEADRACE_ACTION_URL_NAME" == str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1:8090", "localhost", "[::1]:8090"])
def test_load_settings_open_address_on_loopback_may_have_a_secret(host: str) -> None:
    """What is sent there never leaves the machine."""
    url = f"http://{host}/"
    loaded = load_settings({"HEADRACE_MODEL_URL": url, "HEADRACE_ACTION_URL_BLOCK": url, "HEADRACE_ACTION_TOKEN": "x"})
    assert (url, {"block": url}) == (loaded.model_url, loaded.action_urls)


def test_load_settings_open_address_without_a_secret_is_taken() -> None:
    """Nothing goes there that somebody on the way could use."""
    url = "http://payments.example/"
    assert {"block": url} == load_settings({"HEADRACE_ACTION_URL_BLOCK": url}).action_urls


def test_load_settings_empty_secret_file_is_unset() -> None:
    """Docker Compose hands over an empty variable for one that is not set."""
    assert Settings() == load_settings({"HEADRACE_BROKER_PASSWORD_FILE": "", "HEADRACE_STORE_PASSWORD_FILE": ""})


def test_in_one_form_names_a_setting_as_its_variable() -> None:
    """A running process does not know any more where a setting came from; other names stay as they are."""
    assert "HEADRACE_BROKER_CA: x" == in_one_form(SetupError("broker_ca", "x"))
    assert "raw.orders: x" == in_one_form(SetupError("raw.orders", "x"))
    assert "broker: x" == in_one_form(Rejected("broker: x"))


def test_load_settings_wrong_line_of_the_file_is_named(project: Project) -> None:
    """A setting of the file is named with its table."""
    with pytest.raises(SetupError, match=r"^\[tool\.headrace\] brokers: unknown setting"):
        load_settings({}, project('brokers = "x"'))


def test_load_settings_wrong_option_is_named() -> None:
    """An option is named as it was typed."""
    with pytest.raises(SetupError, match=r"^--model-concurrency: must be 1 to 256$"):
        load_settings({}, overrides={"model_concurrency": 0})


def test_load_settings_unreadable_file_is_named(tmp_path: Path) -> None:
    """A broken pyproject.toml is one line that names it."""
    (tmp_path / "pyproject.toml").write_text("[tool.headrace\n")
    with pytest.raises(SetupError, match=r"pyproject\.toml: "):
        load_settings({}, tmp_path)


def test_settings_do_not_change() -> None:
    """One frozen object for the life of a process."""
    with pytest.raises(AttributeError):
        Settings().broker = "kafka://other:9092"  # type: ignore[misc]


def test_redacted_hides_secrets_and_passwords() -> None:
    """What is logged can be shown to anyone."""
    settings = Settings(
        action_token="s3cret",
        pagerduty_routing_key="s3cret",
        store="rediss://user:pa@ss@store:6379/0",
        broker="kafka://a:9092",
        action_urls={"block": "https://shop:s3cret@shop.example/block?key=s3cret"},
    )
    shown = settings.redacted()
    assert ("***", "rediss://***@store:6379/0", "kafka://a:9092") == (
        shown["action_token"],
        shown["store"],
        shown["broker"],
    )
    assert {"block": "https://***@shop.example/block"} == shown["action_urls"]
    assert "s3cret" not in str(shown)
    assert "ss@" not in str(shown)


def test_redacted_leaves_empty_secrets_empty() -> None:
    """One sees that no token is set."""
    assert "" == Settings().redacted()["action_token"]
