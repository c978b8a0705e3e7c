import signal

from hypothesis import settings

pytest_plugins = ["tests.infra.fixtures"]

# Where the tests run in the background of a script, the shell lets SIGINT be ignored, by all that they start as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is.
settings.register_profile("tailrace", deadline=None)
settings.load_profile("tailrace")
