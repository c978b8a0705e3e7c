"""Settings: `tailrace.toml`, then `TAILRACE_*` variables (nested with `__`), then what the command line gives.

Secrets come from variables, or from files named by `*_FILE` variables, and are never shown. Unknown keys are errors.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from tailrace_producers.collectors import Collector, Group, Target, default_collectors
from tailrace_producers.collectors.network import IGNORED_INTERFACES
from tailrace_schemas.topics import Topics

from tailrace_flows.core.config import MAX_GENERATION, WindowConfig

__all__ = [
    "AgentSettings", "ClickHouseSettings", "GroupSettings", "KafkaSettings", "RecoverySettings", "Settings",
    "WindowSettings", "load_settings",
]  # fmt: skip


SECRETS: Final = ("password", "key_password")
"""Settings whose value may be in a file that the variable with `_FILE` appended names."""
MAX_RETENTION_DAYS: Final = 10_000
"""Most ClickHouse servers count the end of a row's time in 32 bits: past 2106 it comes out in 1970, and all rows go at
once (ClickHouse#101763)."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _text_properties(value: Any) -> Any:
    # librdkafka takes every property as text; TOML has booleans and numbers.
    if isinstance(value, dict):
        return {key: str(item).lower() if isinstance(item, bool) else str(item) for key, item in value.items()}
    return value


class KafkaSettings(_Section):
    """How to reach Kafka."""

    bootstrap_servers: str = "localhost:9092"
    topic_prefix: str = Field("tailrace", pattern=r"^[a-zA-Z0-9._-]{1,200}$")
    group_id: str = "tailrace-windows"
    """Consumed offsets are committed to this group, for lag tools and pacing; recovery does not depend on them."""
    partitions: int = Field(12, ge=1, le=10_000)
    """Of topics that `tailrace topics` creates."""
    replication_factor: int = Field(1, ge=1, le=32)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] | None = None
    """None: as `properties` say, and else PLAINTEXT."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    username: str = ""
    password: SecretStr | None = None
    ca_file: FilePath | None = None
    """PEM; the authorities that may vouch for the brokers. None: those of the system."""
    certificate_file: FilePath | None = None
    """PEM; by which the brokers know us."""
    key_file: FilePath | None = None
    """PEM; of that certificate."""
    key_password: SecretStr | None = None
    properties: Annotated[dict[str, str], BeforeValidator(_text_properties)] = Field(default_factory=dict, repr=False)
    """Passed to librdkafka as they are; the settings above win. Never shown: there may be a secret among them."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.key_file is not None and self.certificate_file is None:
            raise ValueError("key_file is the key of certificate_file, which is not given")
        protocol = self._protocol()
        if self.security_protocol is None:  # said to be PLAINTEXT, the rest may stay: an embedded stack's is
            if "SASL" not in protocol and (self.username or self.password):
                raise ValueError("username and password need security_protocol to be SASL_SSL (or SASL_PLAINTEXT)")
            if "SSL" not in protocol and (self.ca_file or self.certificate_file):
                raise ValueError("ca_file and certificate_file need security_protocol to be SSL or SASL_SSL")
        return self

    @property
    def topics(self) -> Topics:
        return Topics(self.topic_prefix)

    def client(self) -> dict[str, Any]:
        """librdkafka's configuration for any client. Do not show it: secrets are in it."""
        protocol = self._protocol()
        named: dict[str, Any] = {"security.protocol": self.security_protocol}
        if "SASL" in protocol:
            named |= {
                "sasl.mechanism": self.sasl_mechanism,
                "sasl.username": self.username,
                "sasl.password": _shown(self.password),
            }
        if "SSL" in protocol:
            named |= {
                "ssl.ca.location": self.ca_file,
                "ssl.certificate.location": self.certificate_file,
                "ssl.key.location": self.key_file,
                "ssl.key.password": _shown(self.key_password),
            }
        properties = self.properties
        if protocol == "PLAINTEXT":
            properties = {key: value for key, value in properties.items() if not key.startswith(("sasl.", "ssl."))}
        given = {name: str(value) for name, value in named.items() if value}
        return {"bootstrap.servers": self.bootstrap_servers, **properties, **given}

    def _protocol(self) -> str:
        return self.security_protocol or self.properties.get("security.protocol", "PLAINTEXT").upper()


def _shown(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _clickhouse_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s@]+", text):
        raise ValueError("must be http://HOST:PORT or https://HOST:PORT; user and password are settings of their own")
    return text


class ClickHouseSettings(_Section):
    """How to reach ClickHouse's HTTP interface. With https its certificate is verified, name and all."""

    url: Annotated[str, AfterValidator(_clickhouse_url)] = "http://localhost:8123"
    database: str = Field("tailrace", pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,62}$")
    user: str = "default"
    password: SecretStr = SecretStr("")
    ca_file: FilePath | None = None
    """PEM; the authorities that may vouch for the server. None: well-known ones."""
    certificate_file: FilePath | None = None
    """PEM; by which the server knows us. Without a password it is that of `user`."""
    key_file: FilePath | None = None
    """PEM; of that certificate."""
    retention_10s_days: int = Field(7, ge=1, le=MAX_RETENTION_DAYS)
    retention_1m_days: int = Field(45, ge=1, le=MAX_RETENTION_DAYS)
    """A 30 d SLO needs more than 30."""
    retention_1h_days: int = Field(395, ge=1, le=MAX_RETENTION_DAYS)


class WindowSettings(_Section):
    """Event time; see docs/architecture.md."""

    disorder_s: float = Field(2.0, ge=0)
    lateness_s: float = Field(60.0, ge=0)
    max_future_s: float = Field(60.0, ge=0)
    idle_s: float = Field(10.0, gt=0)
    scale: int = Field(6, ge=0, le=8)
    max_series: int = Field(200_000, ge=1)
    """Of one service and stream."""
    max_shard_series: int = Field(250_000, ge=1)
    """Of all services of a shard, which is a 64th of them; see docs/operations.md."""
    generation: int = Field(0, ge=0, le=MAX_GENERATION)
    """Rows of a higher one replace those of a lower: to be raised with a new recovery directory; see
    docs/operations.md."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        self.config()  # raises, naming them, where two contradict each other
        return self

    def config(self) -> WindowConfig:
        """The core's configuration.

        Raises:
            ValueError: settings that contradict each other.
        """
        return WindowConfig(**self.model_dump())


class RecoverySettings(_Section):
    """Where and how a flow keeps what it needs to go on after a crash."""

    directory: Path = Path("tailrace-data/recovery")
    """Each flow has a directory of its own in it."""
    epoch_s: float = Field(1.0, gt=0, le=600)
    contents: Literal["replay", "snapshot"] = "replay"
    """`replay` reads open windows from Kafka again; `snapshot` stores them, for the embedded broker."""
    spool_mb: int = Field(4096, ge=0)
    """Of each process: what may wait on disk while ClickHouse is away. Beyond it, the flow waits for ClickHouse."""


class GroupSettings(_Section):
    """A process group: its name, and what a process must be to start it; all that is given must hold."""

    name: str
    process: str = ""
    """The program's name; `*`, `?` and `[...]` as in a shell."""
    command_line: str = ""
    """A regular expression, found anywhere in the arguments."""
    user: str = ""
    """Name or number."""
    parent: str = ""
    """The name of the parent's program; a pattern as in `process`."""
    cgroup: str = ""
    """The control group's path; a pattern as in `process`."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        self.group()
        return self

    def group(self) -> Group:
        """What the collector takes.

        Raises:
            ValueError: nothing to match, or a pattern that is none.
        """
        return Group(**self.model_dump())


def _target(text: str) -> str:
    Target.parse(text)
    return text


class AgentSettings(_Section):
    """The host agent; see docs/agent.md. All but `service` is taken again on SIGHUP."""

    interval_s: float = Field(5.0, ge=0.1, le=3600)
    service: str = Field("host", min_length=1)
    groups: tuple[GroupSettings, ...] = ()
    """The first that a process, or one it descends from, matches is its group."""
    probes: tuple[Annotated[str, AfterValidator(_target)], ...] = ()
    """`host:port` of TCP services whose latency is measured once an interval."""
    probe_timeout_s: float = Field(2.0, gt=0, le=60)
    ignored_interfaces: tuple[str, ...] = IGNORED_INTERFACES
    """Patterns of network interfaces to leave out."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        self.collectors()  # reads nothing yet
        return self

    def collectors(self) -> list[Collector]:
        """What these settings ask for, anew.

        Raises:
            ValueError: two groups of one name, too much of something.
        """
        return default_collectors(
            [group.group() for group in self.groups],
            [Target.parse(text) for text in self.probes],
            self.probe_timeout_s,
            self.ignored_interfaces,
        )


class Settings(BaseSettings):
    """All of it.

    Raises:
        ValueError: a key or variable that is none of these, a value that does not fit, or a file that is not TOML;
            names it, and what is allowed. Or a secret's file that cannot be read.
        OSError: `tailrace.toml` cannot be read.
    """

    model_config = SettingsConfigDict(
        env_prefix="TAILRACE_",
        env_nested_delimiter="__",
        # Other variables may be called TAILRACE_ANYTHING; the file's keys are checked where it is read.
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    windows: WindowSettings = WindowSettings()
    recovery: RecoverySettings = RecoverySettings()
    agent: AgentSettings = AgentSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls, env_settings), _Toml(settings_cls)


def load_settings() -> Settings:
    """`Settings()`, with every fault told in words.

    Raises:
        ValueError: what `Settings` raises; the message names each place that is wrong, and why.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = [f"  {'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in error.errors()]
        raise ValueError("\n".join([f"the settings ({_path()}, TAILRACE_*) are wrong:", *wrong])) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"the settings are wrong: {error}") from None
    except RecursionError:  # of the parsers of TOML and JSON
        raise ValueError(f"the settings ({_path()}, TAILRACE_*) are wrong: they are nested too deeply") from None


def _path() -> Path:
    """The file, there or not."""
    return Path(os.environ.get("TAILRACE_CONFIG") or "tailrace.toml")


class _Source(PydanticBaseSettingsSource):
    """One that gives all its values at once."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def sections(self) -> dict[str, list[str]]:
        """The sections and their keys."""
        return {
            name: list(field.annotation.model_fields)
            for name, field in self.settings_cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        }


class _Environment(_Source):
    """`TAILRACE_KAFKA__GROUP_ID=x`, and `TAILRACE_KAFKA__PASSWORD_FILE=/run/secrets/x`: what that file holds."""

    def __init__(self, settings_cls: type[BaseSettings], variables: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._variables = variables

    def __call__(self) -> dict[str, Any]:
        try:
            found = self._variables()
        except SettingsError as error:
            raise ValueError(_not_json(error)) from None
        for section, allowed in self.sections().items():
            if not isinstance(values := found.get(section), dict):
                continue
            files = {name: values.pop(f"{name}_file", None) for name in SECRETS if name in allowed}
            if unknown := sorted(values.keys() - allowed):
                raise ValueError(
                    f"TAILRACE_{section.upper()}__{unknown[0].upper()}: there is no such setting; there are: "
                    + ", ".join(f"TAILRACE_{section.upper()}__{key.upper()}" for key in allowed)
                )
            for name, path in files.items():
                if path and name not in values:
                    try:
                        values[name] = Path(path).read_text("utf-8").strip()
                    except (OSError, UnicodeDecodeError) as error:
                        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"  # and not what it is
                        variable = f"TAILRACE_{section.upper()}__{name.upper()}_FILE"
                        raise ValueError(f"{variable} names {path}, which cannot be read: {why}") from None
        return found


def _not_json(error: SettingsError) -> str:
    """Which variable it is about: pydantic names but its section. Its value is not shown, it may be a secret."""
    value = getattr(error.__cause__, "doc", None)
    names = [name for name in os.environ if name.upper().startswith("TAILRACE_") and os.environ[name] == value]
    return f"{' or '.join(names) or error}: lists and tables are given as JSON, such as " + '{"client.id": "x"}'


class _Toml(_Source):
    """`tailrace.toml` of the working directory where there is one, or the file that `TAILRACE_CONFIG` names."""

    def __call__(self) -> dict[str, Any]:
        named = os.environ.get("TAILRACE_CONFIG")
        path = _path()
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            if named:
                raise ValueError(f"TAILRACE_CONFIG names {path}, which does not exist") from None
            return {}
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: {error}") from None
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: {error}") from None
        sections = self.sections()
        if unknown := sorted(values.keys() - sections.keys()):
            raise ValueError(_unknown(path, text, "", unknown[0], list(sections)))
        for section, found in values.items():
            if not isinstance(found, dict):
                raise ValueError(f"{path}{_line_of(text, '', section)}: {section} is a table: [{section}]")
            if unknown := sorted(found.keys() - set(sections[section])):
                raise ValueError(_unknown(path, text, section, unknown[0], sections[section]))
        allowed = list(GroupSettings.model_fields)
        for number, group in enumerate(_tables(values.get("agent", {}).get("groups"))):
            if unknown := sorted(group.keys() - set(allowed)):
                raise ValueError(_unknown(path, text, "agent.groups", unknown[0], allowed, number))
        return values


def _tables(value: Any) -> list[dict[str, Any]]:
    """The tables of an array; what is none is pydantic's to refuse."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _unknown(path: Path, text: str, section: str, key: str, allowed: list[str], number: int = 0) -> str:
    """`number`: of the table, where a section is an array of tables."""
    name = f"{section}.{key}" if section else key
    where = _line_of(text, section, key, number)
    return f"{path}{where}: there is no setting {name!r}; allowed are: {', '.join(allowed)}"


def _line_of(text: str, section: str, key: str, table: int = 0) -> str:
    """`:3`, the line of a key or of a table's head; empty where it is written in an unusual way."""
    within = ""
    heads = 0
    for number, line in enumerate(text.splitlines(), 1):
        if head := re.match(r"\s*\[\[?\s*([^\]#]+?)\s*\]", line):
            within = head[1].replace('"', "")
            heads += within == section
            if not section and within.partition(".")[0] == key:
                return f":{number}"
        elif (
            within == section
            and (heads > table or not section)
            and re.match(rf"\s*\"?{re.escape(key)}\"?\s*[=.]", line)
        ):
            return f":{number}"
    return ""
