"""Two workers of four threads, which end with the process that started them."""

import json
import os
import signal
import sys
import threading

bind = "127.0.0.1:0"
workers = 2
threads = 4
preload_app = True
loglevel = "warning"


def end_with_parent():
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def when_ready(server):
    from app import issue

    port = server.LISTENERS[0].sock.getsockname()[1]
    print(json.dumps({"port": port, "key": issue()}), flush=True)
    threading.Thread(target=end_with_parent, daemon=True).start()
