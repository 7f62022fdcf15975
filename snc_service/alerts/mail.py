"""Mail: one message to all mailboxes of a receiver, over an encrypted connection."""

from __future__ import annotations

import contextlib
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from email.message import EmailMessage
from email.utils import format_datetime

from snc_service.alerts.address import AddressRefused, Network, checked
from snc_service.alerts.message import Message
from snc_service.alerts.post import DEADLINE_SECONDS, NotDelivered, trusted
from snc_service.alerts.receivers import Email


def send_mail(
    receiver: Email,
    message: Message,
    allowed: Sequence[Network],
    deadline_seconds: float = DEADLINE_SECONDS,
) -> None:
    """Send a message to the mail server of a receiver. Raises `NotDelivered`.

    If the receiver asks for TLS, the server must offer it with a certificate for its name; there is
    no fallback to clear text. The message is delivered if one mailbox accepts it.
    """
    place = f"{receiver.host}:{receiver.port}"
    try:
        with _connection(receiver, allowed, deadline_seconds) as client:
            if receiver.security == "starttls":
                client.encrypt()
            if receiver.username is not None and receiver.password is not None:
                client.login(receiver.username, receiver.password)
            client.send_message(mail(receiver, message))
    except AddressRefused as error:
        raise NotDelivered(str(error), outcome="refused") from None
    except smtplib.SMTPResponseException as error:
        raise _answered(place, error.smtp_code) from None
    except smtplib.SMTPRecipientsRefused as error:
        raise _answered(place, max(code for code, _ in error.recipients.values())) from None
    except smtplib.SMTPNotSupportedError:
        raise NotDelivered(f"{place} does not offer what is asked for", outcome="refused") from None
    except TimeoutError:
        raise NotDelivered(f"{place} did not answer within {deadline_seconds:g} seconds") from None
    except (smtplib.SMTPException, ssl.SSLError, OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or type(error).__name__
        raise NotDelivered(f"{place} cannot be talked to: {words}") from None


def mail(receiver: Email, message: Message) -> EmailMessage:
    """Return the mail. Its id is that of the message, so mailboxes can drop a repeated mail."""
    told = EmailMessage()
    domain = receiver.from_.rpartition("@")[2]
    # The standard library decodes what looks like an encoded word, line ends in it included: a name
    # could add a header.
    title = message.title.replace("=?", "=\N{ZERO WIDTH SPACE}?")
    told["Subject"] = f"[snc] {title}"[:300]
    told["From"] = receiver.from_
    told["To"] = ", ".join(receiver.to)
    told["Date"] = format_datetime(datetime.now(timezone.utc))
    told["Message-ID"] = f"<snc-{message.key}@{domain}>"
    told["References"] = f"<snc-{message.incident.id}@{domain}>"  # one thread per incident
    told["Auto-Submitted"] = "auto-generated"
    lines = [message.title, "", *message.lines]
    if message.link is not None:
        lines += ["", message.link]
    told.set_content("\n".join(lines) + "\n")
    return told


class _Client(smtplib.SMTP):
    """An SMTP client that connects to a checked address, with TLS from the start where asked for.

    ``sockets`` gets every socket once connected, before the server sends anything.
    """

    def __init__(
        self, receiver: Email, allowed: Sequence[Network], sockets: list[socket.socket]
    ) -> None:
        self._allowed = allowed
        self._context = trusted() if receiver.security == "tls" else None
        self._sockets = sockets
        name = socket.gethostname()
        super().__init__(
            receiver.host,
            receiver.port,
            # The default would resolve the name of this host, which can take long.
            local_hostname=name if "." in name and name.isascii() else "[127.0.0.1]",
            timeout=DEADLINE_SECONDS,
        )

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        failure: OSError | None = None
        for address in checked(host, port, self._allowed):
            try:
                plain = socket.create_connection((address, port), timeout)
            except OSError as error:
                failure = error
            else:
                return self._kept(plain, host)
        raise failure or OSError("no address")

    def _kept(self, plain: socket.socket, host: str) -> socket.socket:
        self._sockets.append(plain)
        if self._context is None:
            return plain
        secure = self._context.wrap_socket(plain, server_hostname=host)
        self._sockets.append(secure)
        return secure

    def encrypt(self) -> None:
        """Switch the connection to TLS."""
        self.starttls(context=trusted())
        if self.sock is not None:
            self._sockets.append(self.sock)


@contextlib.contextmanager
def _connection(
    receiver: Email, allowed: Sequence[Network], deadline_seconds: float
) -> Iterator[_Client]:
    """Lend a connection that is cut at the deadline: slow bytes do not extend it."""
    cut = threading.Event()
    sockets: list[socket.socket] = []

    def end() -> None:
        cut.set()
        for each in sockets:
            with contextlib.suppress(OSError):  # closed, or wrapped by the next
                each.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(deadline_seconds, end)
    timer.daemon = True
    timer.start()
    try:
        with _Client(receiver, allowed, sockets) as client:
            yield client
    except (smtplib.SMTPServerDisconnected, OSError):
        if cut.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()


def _answered(place: str, code: int) -> NotDelivered:
    for_good = 500 <= code < 600
    return NotDelivered(
        f"{place} answered {code}", outcome="refused" if for_good else "failed", outage=not for_good
    )
