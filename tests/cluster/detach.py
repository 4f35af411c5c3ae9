"""Start a program as a daemon, optionally inside the namespaces of another process, and print its process id.

Run by process.py as a script: `detach.py LOG HOLDER PROGRAM [ARGUMENT...]`; HOLDER is `-` for none. It is a separate
process for two reasons. Entering a PID namespace only affects children (hence the fork). And a daemon must not be a
child of the caller, because nobody would reap it. The printed id is the id that the host sees.
"""

import ctypes
import os
import sys

# Mounts come last: after entering the mount namespace, /proc is the node's.
NAMESPACES = ("net", "pid_for_children", "mnt")


def enter(holder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    handles = [os.open(f"/proc/{holder}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in NAMESPACES]
    for name, handle in zip(NAMESPACES, handles, strict=True):
        if libc.setns(handle, 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the {name} namespace of process {holder}")


def main(log: str, holder: str, *argv: str) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if holder != "-":
        enter(holder)
    # The pipe closes when the program starts. If the program cannot start, the pipe carries the reason.
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        failure = os.read(reader, 4096).decode()
        print(failure or child, file=sys.stderr if failure else sys.stdout, flush=True)
        # Not exit(): the interpreter has nothing to clean up, and the init of the namespace adopts the daemon.
        os._exit(1 if failure else 0)
    os.setsid()
    os.chdir("/")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        os.execv(argv[0], argv)
    except OSError as error:
        os.write(writer, f"cannot run {argv[0]}: {error.strerror}".encode())
        os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
