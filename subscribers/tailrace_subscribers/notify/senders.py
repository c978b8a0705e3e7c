"""Sending one message to one receiver: webhook, email, and whatever Apprise knows.

A sender blocks until the message is taken, or raises `SendError`, which says whether to try again. Each message carries
the id of its notification, so that a receiver can know one that comes twice: as `Idempotency-Key` and in the body of a
webhook, as `Message-ID` of an email, in the text of everything else.
"""

import json
import logging
import smtplib
import ssl
from collections.abc import Sequence
from contextlib import suppress
from email.message import EmailMessage
from email.utils import format_datetime
from hashlib import blake2b
from typing import Any, Final

import apprise
import requests
from tailrace_schemas.config.receivers import AppriseTarget, Email, Receiver, Webhook
from tailrace_schemas.notifications import Notification

from tailrace_subscribers.notify import alertmanager
from tailrace_subscribers.notify.render import Rendered, TemplatesError, render
from tailrace_subscribers.notify.secrets import SecretError, resolve, url_part

__all__ = ["SendError", "send"]

TIMEOUT_S: Final = 10.0
"""For each step: to connect, for each answer."""
APPRISE_TIMEOUT_S: Final = 30.0
RETRY_AFTER_MAX_S: Final = 300.0
SAID_MAX_BYTES: Final = 4096
"""Of a server's answer: so much more than is shown, that a secret in it is seen whole, and masked."""
DOMAIN: Final = "tailrace.invalid"
"""In Message-IDs: they must be unique, not resolvable."""


class SendError(Exception):
    """The message was not taken. The text may quote the other side, at length: mask it, then cut it."""

    def __init__(self, why: str, *, retry: bool, after_s: float | None = None) -> None:
        super().__init__(why)
        self.retry = retry
        """Whether it may be taken later."""
        self.after_s = after_s
        """When the other side said to come back."""


def send(receiver: Receiver, notifications: Sequence[Notification]) -> str:
    """Sends one notification, or several as one digest, which a webhook does not take.

    Returns what is to be logged nevertheless: a template that failed, recipients that were refused; usually nothing.

    Raises:
        SendError: it was not taken.
    """
    try:
        if receiver.webhook:
            (notification,) = notifications
            _webhook(receiver.webhook, notification)
            return ""
        try:
            rendered, note = render(receiver.templates, notifications), ""
        except TemplatesError as error:  # a slip in a template must not keep anybody asleep
            rendered, note = render(type(receiver.templates)(), notifications), f"{error}; the default was sent"
        if receiver.email:
            return "; ".join(filter(None, (note, _email(receiver.email, rendered, notifications))))
        if receiver.apprise:
            _apprise(receiver.apprise, rendered, notifications)
        return note
    except SecretError as error:
        raise SendError(str(error), retry=True) from None


# -- webhook -------------------------------------------------------------------------------------------


def _webhook(webhook: Webhook, notification: Notification) -> None:
    if webhook.format == "alertmanager":
        body = json.dumps(alertmanager.payload(notification), ensure_ascii=False)
    else:
        body = notification.model_dump_json()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "tailrace",
        "Idempotency-Key": notification.id,
        **{name: resolve(value) for name, value in webhook.headers.items()},
    }
    try:
        with requests.post(
            resolve(webhook.url, encode=url_part), body.encode(), headers=headers, timeout=TIMEOUT_S,
            allow_redirects=False, stream=True,
        ) as answer:  # fmt: skip
            code, after = answer.status_code, answer.headers.get("Retry-After", "")
            said = "" if 200 <= code < 300 else next(answer.iter_content(SAID_MAX_BYTES), b"").decode(errors="replace")
    except requests.RequestException as error:
        retry = not isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema)
        raise SendError(_network(error), retry=retry) from None
    if not 200 <= code < 300:
        again = code in (408, 425, 429) or code >= 500
        wait_s = min(float(after), RETRY_AFTER_MAX_S) if after.isdigit() else None
        raise SendError(" ".join(f"HTTP {code} {said}".split()), retry=again, after_s=wait_s)


def _network(error: BaseException) -> str:
    """The innermost reason, which has no URL in it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


# -- email ---------------------------------------------------------------------------------------------


def _email(email: Email, rendered: Rendered, notifications: Sequence[Notification]) -> str:
    message = _message(email, rendered, notifications)
    try:
        smtp = _connected(email)
        try:
            refused = smtp.send_message(message, email.sender, list(email.to))
            with suppress(smtplib.SMTPException, OSError):  # taken, whatever the server answers now
                smtp.quit()
        finally:
            smtp.close()
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        raise SendError(f"all recipients were refused: {codes}", retry=any(code < 500 for code in codes)) from None
    except smtplib.SMTPResponseException as error:
        said = error.smtp_error.decode(errors="replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        permanent = error.smtp_code >= 500 and not isinstance(error, smtplib.SMTPAuthenticationError)
        raise SendError(f"SMTP {error.smtp_code} {said}", retry=not permanent) from None
    except (OSError, smtplib.SMTPException) as error:
        raise SendError(_network(error), retry=True) from None
    return f"refused for {', '.join(sorted(refused))}" if refused else ""


def _connected(email: Email) -> smtplib.SMTP:
    context = ssl.create_default_context(cafile=email.ca_file or None)
    if email.tls == "tls":
        smtp: smtplib.SMTP = smtplib.SMTP_SSL(email.host, email.port, timeout=TIMEOUT_S, context=context)
    else:
        smtp = smtplib.SMTP(email.host, email.port, timeout=TIMEOUT_S)
    try:
        if email.tls == "starttls":
            smtp.starttls(context=context)
        if email.username:
            smtp.login(email.username, resolve(email.password))
    except BaseException:
        smtp.close()
        raise
    return smtp


def _message(email: Email, rendered: Rendered, notifications: Sequence[Notification]) -> EmailMessage:
    """Plain text and HTML. Mail programs show the messages of one group as a thread."""
    first = notifications[0]
    message = EmailMessage()
    message["From"] = email.sender
    message["To"] = ", ".join(email.to)
    message["Subject"] = rendered.title
    message["Date"] = format_datetime(first.time)
    message["Message-ID"] = f"<{_digest_id(notifications)}@{DOMAIN}>"
    if len(notifications) == 1:
        group = blake2b(first.group_key.encode(), digest_size=8).hexdigest()
        message["References"] = f"<group-{group}@{DOMAIN}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
    message.set_content(rendered.text)
    message.add_alternative(rendered.html, subtype="html")
    return message


def _digest_id(notifications: Sequence[Notification]) -> str:
    if len(notifications) == 1:
        return notifications[0].id
    return "digest-" + blake2b(" ".join(one.id for one in notifications).encode(), digest_size=8).hexdigest()


# -- everything else -----------------------------------------------------------------------------------


def _apprise(target: AppriseTarget, rendered: Rendered, notifications: Sequence[Notification]) -> None:
    # It gives its reasons through its logger only: they are to come whatever was done to logging; we tell them.
    logger = logging.getLogger("apprise")
    logger.disabled = logger.propagate = False
    logger.setLevel(logging.WARNING)
    # Nothing of it goes to disk, and emoji names in labels stay what they are.
    asset = apprise.AppriseAsset(storage_mode="memory", interpret_emojis=False, app_id="Tailrace", app_desc="Tailrace")
    sender = apprise.Apprise(asset=asset)
    if not sender.add(resolve(target.url, encode=url_part)):
        raise SendError("Apprise does not know this kind of URL, or something is missing in it", retry=False)
    kind = "success" if all(one.status == "resolved" for one in notifications) else "failure"
    result: Any = sender.notify(
        body=rendered.text, title=rendered.title, notify_type=kind, body_format="text", timeout=APPRISE_TIMEOUT_S
    )
    if not result:
        said = "; ".join(entry.message for entry in result.logs())
        raise SendError(said or "Apprise could not send it", retry=True)
