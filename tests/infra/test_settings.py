"""Settings are strict: what is unknown or wrong is an error that names the place and what is allowed."""

from pathlib import Path

import pytest
from tailrace_flows.settings import Settings, load_settings
from tailrace_infra import check
from tailrace_producers.collectors import Group


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str) -> None:
    Path("tailrace.toml").write_text(text)


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[kafka]\ngroup_id = "file"\ntopic_prefix = "file"\n[kafka.properties]\n"socket.keepalive.enable" = true\n')
    monkeypatch.setenv("TAILRACE_KAFKA__GROUP_ID", "variable")
    monkeypatch.setenv("TAILRACE_KAFKA__PROPERTIES", '{"acks": 1}')
    kafka = Settings().kafka
    assert (kafka.group_id, kafka.topic_prefix) == ("variable", "file")
    assert kafka.properties == {"socket.keepalive.enable": "true", "acks": "1"}
    assert Settings(kafka={"group_id": "flag"}).kafka.group_id == "flag"


GROUP = '[[agent.groups]]\nname = "a"\nprocess = "a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kafk = 1\n", r"tailrace\.toml:1: there is no setting 'kafk'; allowed are: kafka, clickhouse"),
        ("\n[nope]\nx = 1\n", r"tailrace\.toml:2: there is no setting 'nope'"),
        ('[windows]\nscale = 6\n# x\n[kafka]\n"scale" = 1\n', r"toml:5: .*'kafka\.scale'; allowed are: bootstrap_serv"),
        ("kafka = {nope = 1}\n", r"tailrace\.toml: there is no setting 'kafka\.nope'"),
        ("[kafka]\npassword_file = 1\n", r"toml:2: there is no setting 'kafka\.password_file'"),
        ("kafka = 3\n", r"toml:1: kafka is a table: \[kafka\]"),
        ("[kafka\n", r"tailrace\.toml: .*line 1"),
        ("[windows]\nscale = 9\n", r"windows\.scale"),
        ("\n[agent]\ninterval = 1\n", r"toml:3: .*'agent\.interval'; allowed are: interval_s, service, groups, probes"),
        ("[agent]\ninterval_s = 0\n", r"agent\.interval_s"),
        (
            GROUP + '\n[[agent.groups]]\nname = "b"\nproces = "b"\n',
            r"toml:7: .*'agent\.groups\.proces'; allowed are: name, p",
        ),
        (
            GROUP + '\n[[agent.groups]]\nname = "b"\n',
            r"agent\.groups\.1\n.*group 'b' matches nothing: give it at least one",
        ),
        (GROUP + GROUP, "two process groups are called 'a'"),
        (GROUP + 'command_line = "("\n', r"group 'a': command_line '\(' is no regular expression"),
        ('[agent]\nprobes = ["db"]\n', r"agent\.probes\.0\n.*'db' is no target: write host:port"),
        ("[agent]\nprobes = 3\n", r"agent\.probes"),
        ("[agent]\ngroups = 3\n", r"agent\.groups"),
        ("[windows]\nmax_future_s = 99\n", "max_future_s 99.0 exceeds lateness_s 60.0"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, message: str) -> None:
    write(text)
    with pytest.raises(ValueError, match=message):
        Settings()


def test_a_variable_of_a_section_that_is_none_of_its_settings_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_KAFKA__GROUP", "x")
    with pytest.raises(ValueError, match=r"TAILRACE_KAFKA__GROUP: there is no such setting.*TAILRACE_KAFKA__GROUP_ID"):
        Settings()


def test_a_variable_that_is_not_json_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_KAFKA__PROPERTIES", "sasl.password=geheim")
    with pytest.raises(ValueError, match=r"^the settings are wrong: TAILRACE_KAFKA__PROPERTIES: .* as JSON") as caught:
        load_settings()
    assert "geheim" not in str(caught.value)


def test_properties_are_not_shown() -> None:
    write('[kafka.properties]\n"security.protocol" = "ssl"\n"ssl.key.password" = "geheim"\n')
    settings = load_settings()
    assert settings.kafka.client()["ssl.key.password"] == "geheim"
    assert "geheim" not in repr(settings)


def test_a_file_that_is_no_text_is_named() -> None:
    Path("tailrace.toml").write_bytes(b"[agent]\nservice = '\xff'\n")
    with pytest.raises(ValueError, match=r"tailrace\.toml: 'utf-8' codec"):
        load_settings()


def test_what_is_nested_too_deeply_is_a_fault_as_others_are() -> None:
    Path("tailrace.toml").write_text("[agent]\ninterval_s = " + "[" * 5000)
    with pytest.raises(ValueError, match="nested too deeply"):
        load_settings()


def test_other_variables_are_none_of_its_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_TEST_DATA", "x")
    monkeypatch.setenv("TAILRACE_OTHER__THING", "x")
    assert Settings() == Settings()


def test_another_file_must_exist(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("TAILRACE_CONFIG", str(directory / "other.toml"))
    with pytest.raises(ValueError, match=r"TAILRACE_CONFIG names .*other\.toml, which does not exist"):
        Settings()
    (directory / "other.toml").write_text("[windows]\nscale = 3\n")
    assert Settings().windows.scale == 3


def test_the_agents_collectors_are_what_the_file_says() -> None:
    write(
        '[agent]\ninterval_s = 1\nprobes = ["[::1]:80"]\nignored_interfaces = []\n'
        '[[agent.groups]]\nname = "a"\nuser = "root"\n[[agent.groups]]\nname = "b"\ncommand_line = "x y"\n'
    )
    agent = load_settings().agent
    assert (agent.interval_s, agent.service) == (1.0, "host")
    assert [group.group() for group in agent.groups] == [Group("a", user="root"), Group("b", command_line="x y")]
    assert "probes" in {collector.name for collector in agent.collectors()}


def test_faults_are_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    write("[agent]\ninterval_s = 0\nprobe_timeout_s = 99\n")
    with pytest.raises(
        ValueError, match=r"(?s)are wrong:\n  agent\.interval_s: .*\n  agent\.probe_timeout_s: "
    ) as caught:
        load_settings()
    assert len(str(caught.value).splitlines()) == 3
    monkeypatch.setenv("TAILRACE_KAFKA__PASSWORD_FILE", "/none")
    with pytest.raises(
        ValueError, match=r"the settings are wrong: TAILRACE_KAFKA__PASSWORD_FILE names /none, .*: No such file"
    ):
        load_settings()


def test_an_url_with_a_password_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_CLICKHOUSE__URL", "http://me:geheim@clickhouse:8123")
    with pytest.raises(ValueError, match=r"clickhouse\.url: .*user and password are settings of their own") as caught:
        load_settings()
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("section", ["kafka", "clickhouse"])
def test_a_password_comes_from_a_file_and_is_never_shown(
    section: str, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    (directory / "secret").write_text("geheim\n")
    monkeypatch.setenv("TAILRACE_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv(f"TAILRACE_{section.upper()}__PASSWORD_FILE", str(directory / "secret"))
    settings = Settings()
    assert getattr(settings, section).password.get_secret_value() == "geheim"
    assert "geheim" not in repr(settings)
    monkeypatch.setenv(f"TAILRACE_{section.upper()}__PASSWORD", "variable")
    assert getattr(Settings(), section).password.get_secret_value() == "variable"
    monkeypatch.setenv(f"TAILRACE_{section.upper()}__PASSWORD_FILE", str(directory / "none"))
    monkeypatch.delenv(f"TAILRACE_{section.upper()}__PASSWORD")
    with pytest.raises(ValueError, match=rf"TAILRACE_{section.upper()}__PASSWORD_FILE names .*none"):
        Settings()
    (directory / "binary").write_bytes(b"\xffgeheim")
    monkeypatch.setenv(f"TAILRACE_{section.upper()}__PASSWORD_FILE", str(directory / "binary"))
    with pytest.raises(ValueError, match=r"binary, which cannot be read: it is not UTF-8$"):
        Settings()


def test_librdkafka_gets_what_the_settings_name(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    for name in ("ca.pem", "me.pem", "me.key"):
        (directory / name).touch()
    write(
        '[kafka]\nsecurity_protocol = "SASL_SSL"\nsasl_mechanism = "SCRAM-SHA-512"\nusername = "me"\n'
        'ca_file = "ca.pem"\ncertificate_file = "me.pem"\nkey_file = "me.key"\n'
        '[kafka.properties]\n"sasl.username" = "other"\n"client.id" = "x"\n'
    )
    monkeypatch.setenv("TAILRACE_KAFKA__PASSWORD", "geheim")
    (directory / "phrase").write_text("phrase\n")
    monkeypatch.setenv("TAILRACE_KAFKA__KEY_PASSWORD_FILE", str(directory / "phrase"))
    assert load_settings().kafka.client() == {
        "bootstrap.servers": "localhost:9092", "client.id": "x",
        "security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512", "sasl.username": "me",
        "sasl.password": "geheim", "ssl.ca.location": "ca.pem", "ssl.certificate.location": "me.pem",
        "ssl.key.location": "me.key", "ssl.key.password": "phrase",
    }  # fmt: skip
    # As for a stack on this machine, which has no TLS: nothing of it, secrets least of all.
    monkeypatch.setenv("TAILRACE_KAFKA__SECURITY_PROTOCOL", "PLAINTEXT")
    assert load_settings().kafka.client() == {
        "bootstrap.servers": "localhost:9092", "client.id": "x", "security.protocol": "PLAINTEXT",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('username = "me"', r"kafka: .*username and password need security_protocol to be SASL_SSL"),
        ('password = "geheim"', r"kafka: .*username and password need security_protocol to be SASL_SSL"),
        ('ca_file = "tailrace.toml"', r"kafka: .*need security_protocol to be SSL or SASL_SSL"),
        ('security_protocol = "SSL"\nca_file = "none.pem"', r"kafka\.ca_file: Path does not point to a file"),
        ('security_protocol = "TLS"', r"kafka\.security_protocol: Input should be 'PLAINTEXT', 'SSL'"),
        ('sasl_mechanism = "MD5"', r"kafka\.sasl_mechanism: Input should be 'PLAIN', 'SCRAM-SHA-256'"),
        ('security_protocol = "SSL"\nkey_file = "tailrace.toml"', r"kafka: .*key_file is the key of certificate_file"),
    ],
)
def test_security_settings_that_cannot_be_are_named(text: str, message: str) -> None:
    write(f"[kafka]\n{text}\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_settings()
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("kafka", "clickhouse", "exposed"),
    [
        ({}, {"url": "http://db:8123"}, []),
        ({}, {"url": "http://localhost:8123", "password": "x"}, []),
        ({}, {"url": "https://db:8443", "password": "x"}, []),
        ({}, {"url": "http://db:8123", "password": "x"}, ["clickhouse.password"]),
        ({"security_protocol": "SASL_SSL", "bootstrap_servers": "a:1"}, {}, []),
        ({"security_protocol": "SASL_PLAINTEXT", "bootstrap_servers": "127.0.0.1:1,[::1]:2"}, {}, []),
        ({"security_protocol": "SASL_PLAINTEXT", "bootstrap_servers": "localhost:1,a:1"}, {}, ["kafka.password"]),
    ],
)
def test_passwords_that_would_be_sent_as_they_are_are_told(
    kafka: dict[str, str], clickhouse: dict[str, str], exposed: list[str]
) -> None:
    secret = {"username": "me", "password": "geheim"} if kafka else {}
    said = check._settings(Settings(kafka={**kafka, **secret}, clickhouse=clickhouse))
    assert [name for name in ("kafka.password", "clickhouse.password") if name in said] == exposed
    assert "geheim" not in said
