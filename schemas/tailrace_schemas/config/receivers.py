"""Receivers: where notifications go. Secrets are given by reference: `${env:NAME}` or `${file:/path}`.

A reference is resolved by the notifier alone, when it sends. So the config topic, the flows and the database see the
reference; what is written out in full is seen by all who can read the config topic.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from tailrace_schemas.config.base import ConfigModel, Duration, Name, wrong

__all__ = ["REFERENCE", "AppriseTarget", "Email", "RateLimit", "Receiver", "Templates", "Webhook"]

REFERENCE: Final = re.compile(r"\$\{(env|file):([^}]+)\}")
"""`${env:NAME}`: an environment variable of the notifier; `${file:PATH}`: its text, less white space around."""


class _Model(ConfigModel):
    # An error never shows what was given: it may be a secret.
    model_config = ConfigDict(hide_input_in_errors=True)

    def __repr_args__(self) -> Any:
        for name, value in super().__repr_args__():
            yield name, "***" if name in _SECRET and value else value


_SECRET: Final = frozenset({"url", "password", "headers"})
"""Fields that may hold a secret."""


class AppriseTarget(_Model):
    """Any of the services that Apprise knows: Slack, Teams, PagerDuty, SMS gateways and a hundred more."""

    url: Annotated[str, Field(min_length=1, max_length=2000)]
    """As in https://github.com/caronc/apprise/wiki. A reference that is a part is percent-encoded."""


class Webhook(_Model):
    """POST of JSON. 2xx is success; 408, 429 and 5xx are tried again; anything else is given up. No redirects."""

    url: Annotated[str, Field(min_length=1, max_length=2000)]
    headers: dict[str, str] = Field(default_factory=dict)
    format: Literal["tailrace", "alertmanager"] = "tailrace"
    """`tailrace`: the Notification; `alertmanager`: the payload of its webhook receiver, version 4."""


class Email(_Model):
    """A message by SMTP, in plain text and HTML."""

    to: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]
    sender: Annotated[str, Field(alias="from", min_length=3)]
    host: str
    port: Annotated[int, Field(ge=1, le=65535)] = 587
    tls: Literal["starttls", "tls", "none"] = "starttls"
    """`starttls` and `tls` verify the server's certificate; `none` never sends a password."""
    ca_file: str = ""
    """Certificates to trust instead of the system's."""
    username: str = ""
    password: str = ""

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _no_password_in_clear(self) -> Self:
        if self.password and self.tls == "none":
            raise wrong("a password is not sent in clear: use tls: starttls, or tls", "password")
        return self


class Templates(_Model):
    """Jinja2, sandboxed; what is not given is the default. See docs/notifications.md for what they can use."""

    title: Annotated[str, Field(max_length=10_000)] | None = None
    text: Annotated[str, Field(max_length=100_000)] | None = None
    html: Annotated[str, Field(max_length=100_000)] | None = None

    @model_validator(mode="after")
    def _readable(self) -> Self:
        from jinja2 import Environment, TemplateSyntaxError  # few receivers have templates of their own

        for key in ("title", "text", "html"):
            try:
                Environment(autoescape=True).parse(getattr(self, key) or "")
            except TemplateSyntaxError as error:
                raise wrong(f"this is no template: {error.message} (its line {error.lineno})", key) from None
            except RecursionError:
                raise wrong("this is no template: it is nested too deeply", key) from None
        return self


class RateLimit(_Model):
    """At most `messages` in any `per`; what is more waits, and becomes one digest."""

    messages: Annotated[int, Field(ge=1, le=100_000)] = 30
    per: Annotated[Duration, Field(gt=0)] = 60


class Receiver(_Model):
    """One address. Several are a team: so that a retry repeats only what failed."""

    name: Name
    apprise: AppriseTarget | None = None
    webhook: Webhook | None = None
    email: Email | None = None
    send_resolved: bool = True
    rate_limit: RateLimit | None = None
    """Default: 30 messages a minute; for a webhook, which is a program, none."""
    templates: Templates = Templates()

    def sentences(self) -> Sequence[str]:
        return [f"{self.name}: " + ("tells nobody" if self.kind == "none" else f"tells by {self.kind}")]

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(one is not None for one in (self.apprise, self.webhook, self.email)) > 1:
            raise ValueError(f"receiver {self.name}: give one of apprise, webhook, email; several are a team")
        return self

    @property
    def limit(self) -> RateLimit | None:
        """The rate limit, or the default of its kind; None: there is none."""
        return self.rate_limit or (None if self.webhook else RateLimit())

    @property
    def kind(self) -> Literal["apprise", "webhook", "email", "none"]:
        """`none`: on purpose nothing is sent."""
        if self.apprise:
            return "apprise"
        return "webhook" if self.webhook else "email" if self.email else "none"
