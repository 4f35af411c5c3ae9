"""Start a program as a daemon, inside another process's namespaces if one is named, and print its process id.

Run by process.py as a script: `detach.py LOG HOLDER PROGRAM [ARGUMENT...]`, HOLDER `-` for none. It is a process of
its own because entering a PID namespace only concerns children (hence the forks), and because a daemon must not be a
child of the caller: nobody would reap it. The printed id is the one the host sees.
"""

import ctypes
import os
import sys

# Network first and mounts last: with the mount namespace, /proc becomes the one of the node.
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
    # The pipe closes when the program runs, and says why when it can't be run.
    heard, said = os.pipe()
    child = os.fork()
    if child:
        os.close(said)
        trouble = os.read(heard, 4096).decode()
        print(trouble or child, file=sys.stderr if trouble else sys.stdout, flush=True)
        # Not exit(): the interpreter has nothing to tidy up, and the daemon is adopted by the init of its own
        # namespace.
        os._exit(1 if trouble else 0)
    os.setsid()
    os.chdir("/")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        os.execv(argv[0], argv)
    except OSError as error:
        os.write(said, f"cannot run {argv[0]}: {error.strerror}".encode())
        os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
