"""Settings: `tailrace.toml`, then `TAILRACE_*` variables (nested with `__`), then what the command line gives.

Secrets come from variables, or from files named by `*_FILE` variables, and are never shown.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from tailrace_schemas.topics import Topics

from tailrace_flows.core.config import WindowConfig

__all__ = ["ClickHouseSettings", "KafkaSettings", "RecoverySettings", "Settings", "WindowSettings"]


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
    properties: Annotated[dict[str, str], BeforeValidator(_text_properties)] = Field(default_factory=dict)
    """Passed to librdkafka as they are: TLS, SASL and the rest."""
    password: SecretStr | None = None
    """Becomes `sasl.password`."""

    @property
    def topics(self) -> Topics:
        return Topics(self.topic_prefix)

    def client(self) -> dict[str, Any]:
        """librdkafka's configuration for any client."""
        secret = {"sasl.password": self.password.get_secret_value()} if self.password else {}
        return {"bootstrap.servers": self.bootstrap_servers, **self.properties, **secret}


class ClickHouseSettings(_Section):
    """How to reach ClickHouse's HTTP interface."""

    url: str = Field("http://localhost:8123", pattern=r"^https?://[^\s@]+$")
    database: str = Field("tailrace", pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,62}$")
    user: str = "default"
    password: SecretStr = SecretStr("")
    retention_10s_days: int = Field(7, ge=1)
    retention_1m_days: int = Field(45, ge=1)
    """A 30 d SLO needs more than 30."""
    retention_1h_days: int = Field(395, ge=1)


class WindowSettings(_Section):
    """Event time; see docs/architecture.md."""

    disorder_s: float = Field(2.0, ge=0)
    lateness_s: float = Field(60.0, ge=0)
    max_future_s: float = Field(60.0, ge=0)
    idle_s: float = Field(10.0, gt=0)
    scale: int = Field(6, ge=0, le=8)
    max_series: int = Field(200_000, ge=1)
    generation: int = Field(0, ge=0, lt=1 << 15)

    def config(self) -> WindowConfig:
        """The core's configuration.

        Raises:
            ValueError: settings that contradict each other.
        """
        return WindowConfig(**self.model_dump())


class RecoverySettings(_Section):
    """Where and how a flow keeps what it needs to go on after a crash."""

    directory: Path = Path("tailrace-data/recovery")
    epoch_s: float = Field(1.0, gt=0, le=600)
    contents: Literal["replay", "snapshot"] = "replay"
    """`replay` reads open windows from Kafka again; `snapshot` stores them, for the embedded broker."""


class Settings(BaseSettings):
    """All of it."""

    model_config = SettingsConfigDict(
        env_prefix="TAILRACE_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    windows: WindowSettings = WindowSettings()
    recovery: RecoverySettings = RecoverySettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = Path(os.environ.get("TAILRACE_CONFIG", "tailrace.toml"))
        return (
            init_settings,
            env_settings,
            _FileSecrets(settings_cls),
            TomlConfigSettingsSource(settings_cls, path),
        )


class _FileSecrets(PydanticBaseSettingsSource):
    """`TAILRACE_KAFKA__PASSWORD_FILE=/run/secrets/x`: the password is what the file holds."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for section in ("kafka", "clickhouse"):
            path = os.environ.get(f"TAILRACE_{section.upper()}__PASSWORD_FILE")
            if path:
                found[section] = {"password": Path(path).read_text().strip()}
        return found
