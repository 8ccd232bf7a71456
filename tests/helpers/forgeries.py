"""Programs that want to count as passed without running to their end, by name.

Each is followed by a test that fails.
"""

from __future__ import annotations

SEND = """
def send(data):
    for number in range(64):
        try: os.write(number, data)
        except OSError: pass
"""

FRAMES = f"""
import os, sys, types
{SEND}
seen, todo = set(), [sys.modules, sys.argv, sys.orig_argv, dict(os.environ)]
frame = sys._getframe()
while frame:
    todo += [frame.f_locals, frame.f_globals, frame.f_builtins, frame.f_code]
    frame = frame.f_back
while todo:
    item = todo.pop()
    if id(item) in seen: continue
    seen.add(id(item))
    if isinstance(item, bytes) and len(item) == 16 and not item.isascii():
        send(item)
        os._exit(0)
    elif isinstance(item, dict): todo += [*item.keys(), *item.values()]
    elif isinstance(item, (list, tuple, set, frozenset)): todo += item
    elif isinstance(item, types.CodeType): todo += item.co_consts
    elif isinstance(item, types.FunctionType):
        todo += [item.__code__, item.__defaults__, item.__dict__]
        for cell in item.__closure__ or (): todo.append(cell.cell_contents)
    elif isinstance(item, (types.ModuleType, type)): todo.append(dict(vars(item)))
os._exit(0)
"""

# Nothing but a frame refers to the token, and only the garbage collector tells what a frame holds.
REFERENTS = f"""
import gc, os, sys
{SEND}
for item in gc.get_referents(sys._getframe(1)):
    if isinstance(item, bytes) and len(item) == 16:
        send(item)
        os._exit(0)
os._exit(0)
"""

OBJECTS = f"""
import gc, os
{SEND}
for item in gc.get_objects():
    for found in [*(item if isinstance(item, (tuple, list, set)) else ()),
                  *(item.values() if isinstance(item, dict) else ()),
                  *(c.cell_contents for c in getattr(item, '__closure__', None) or ())]:
        if isinstance(found, bytes) and len(found) == 16 and not found.isascii():
            send(found)
            os._exit(0)
os._exit(0)
"""

# Runs the wrapper's own code again, when its frame is gone, with a world made up around it.
WRAPPERS_CODE = """
import atexit, builtins, os, resource, sys, types
code, write = sys._getframe(1).f_code, os.write
def fake(name, *rest):
    module = types.ModuleType(name)
    real = {'sys': sys, 'os': os, 'resource': resource, 'builtins': builtins, 'types': types}[name]
    module.__dict__.update(real.__dict__)
    if name == 'sys':
        module.addaudithook = lambda hook: None
        module.argv = ['-c', '99', '9', '999999999', '9999']
        module.modules = {}
    if name == 'os': module.write = lambda *given: None
    if name == 'builtins': module.exec = lambda *given: None
    if name == 'resource': module.setrlimit = lambda *given: None
    return module
names = {**vars(builtins), '__import__': fake}
atexit.register(exec, code, {'__builtins__': names, '__name__': '__main__'})
sys.exit(0)
"""

STANDARD_INPUT = f"""
import os
{SEND}
for number in range(64):
    try:
        os.set_blocking(number, False)
        os.lseek(number, 0, 0)
        send(os.read(number, 16))
    except OSError: pass
os._exit(0)
"""

JUMP = """
import sys
frame = sys._getframe(1)
def trace(frame, event, value):
    for line in range(frame.f_lineno, frame.f_lineno + 9):
        try: frame.f_lineno = line
        except ValueError: pass
    return trace
frame.f_trace = trace
frame.f_trace_opcodes = True
sys.settrace(trace)
"""

OTHER_BUILTINS = """
import builtins, os, sys
sys.audit = builtins.exec = os._exit = sys.exit = lambda *given: None
builtins.AssertionError = builtins.BaseException = KeyError
sys.excepthook = lambda *given: os.kill(os.getpid(), 15)
"""

FINISH = f"""
import os, sys
{SEND}
wrapper = sys._getframe(1).f_globals
wrapper['finish'](b'', None)
"""

WRAPPERS_GLOBALS = """
import sys
finish = sys._getframe(1).f_globals['finish']
finish.__code__ = (lambda *given: finish.__defaults__[1](3, given[0])).__code__
sys._getframe(1).f_globals.update(finish=print, prepare=print, builtins=None)
"""

ALARM = """
import signal, sys, time
signal.signal(signal.SIGALRM, lambda *given: sys.exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.01)
time.sleep(5)
"""

FORGERIES = {
    "exit": "import sys; sys.exit(0)",
    "exit without a code": "raise SystemExit",
    "hard exit": "import os; os._exit(0)",
    "exit at exit": "import atexit, os; atexit.register(os._exit, 0)",
    "exit at an alarm": ALARM,
    "print": "print('passed'); print('+'); import os; os._exit(0)",
    "guess": f"import os{SEND}\nsend(b'+' + bytes(16)); os._exit(0)",
    "guess the rest": f"import os{SEND}\nsend(bytes(16)); os._exit(0)",
    "flood": f"import os{SEND}\nsend(b'passed' * 99); os._exit(0)",
    "run the wrapper again": WRAPPERS_CODE,
    "finish": FINISH,
    "frames": FRAMES,
    "objects": OBJECTS,
    "referrers": "import gc, os; gc.get_referrers(os.write); os._exit(0)",
    "referents": REFERENTS,
    "standard input": STANDARD_INPUT,
    "other builtins": OTHER_BUILTINS,
    "the wrapper's globals": WRAPPERS_GLOBALS,
    "a jump": JUMP,
    "another program": "import os, sys; os.execv(sys.executable, ['python', '-S', '-c', '1'])",
    "closing everything": "import os; os.closerange(0, 64); os._exit(0)",
    # only where it is alone: outside of a sandbox this would be the end of everything
    "killing": "import os\nassert os.getpid() == 1\nos.kill(1, 9); os.kill(-1, 9)",
    "forking": "import os\nif os.fork(): os._exit(0)\nos._exit(0)",
}

# What the wrapper must not do, or these would succeed: keep the token in a variable.
CAREFUL = "finish(os.read(0, TOKEN), "
CARELESS = "token = os.read(0, TOKEN)\n    finish(token, "
WOULD_SUCCEED = ("frames", "objects")
