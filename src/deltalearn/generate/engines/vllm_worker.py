"""A process that holds one model in vLLM and answers requests that come in as lines of JSON.

It runs as a script, by whatever Python has vLLM, and imports nothing of deltalearn: vLLM pins its
own torch and transformers. When it ends, all memory of the model is really free.

In, first line: {"model": directory, "engine": options of vllm.LLM, "end_ids": [...]}. Then a line
for each request: {"id", "prompt": ids, "max_tokens", "temperature", "top_p", "seed"}.
Out: {"ready": version, "context": tokens, "seeds": whether requests may have them}, then a line for
each request: {"id", "ids", "finish_reason"}, or {"id", "error"}; {"fatal": why} if the model does
not load or vLLM fails, and nothing after it.
"""

import json
import os
import queue
import sys
import threading
import time

WAITING = 512  # requests that vLLM is given beyond those it runs, to choose from


def main() -> None:
    """Answer requests until the input ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what vLLM prints goes to standard error
    first = json.loads(sys.stdin.readline())
    try:
        engine, version = load(first)
        ready = {"ready": version, "context": engine.model_config.max_model_len}
        write_lines(out, {**ready, "seeds": takes_seeds(engine)})
        lines: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=read, args=(lines,), daemon=True).start()
        serve(engine, first["end_ids"], lines, out)
    except Exception as error:  # whatever vLLM raises, the one who waits must hear of it
        write_lines(out, {"fatal": f"{type(error).__name__}: {error}"})
        raise


def load(first):
    """Load the model; returns (LLMEngine, version of vLLM)."""
    import vllm

    options = {"generation_config": "vllm", "trust_remote_code": False, **first["engine"]}
    if on_cpu() and "max_num_batched_tokens" not in options:  # else prompts may not fit whole
        options.setdefault("enable_chunked_prefill", False)  # for seeds, see takes_seeds
    model = vllm.LLM(model=first["model"], **options)
    return model.llm_engine, vllm.__version__


def on_cpu():
    """Tell whether vLLM runs on a CPU."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def takes_seeds(engine):
    """Tell whether requests may have seeds of their own.

    On a CPU vLLM (0.32) ends at a seeded request whose prompt it reads in parts.
    """
    return not (on_cpu() and engine.vllm_config.scheduler_config.enable_chunked_prefill)


def read(lines) -> None:
    """Put requests into the queue, and None when there will be no more."""
    for line in sys.stdin:
        lines.put(json.loads(line))
    lines.put(None)


def serve(engine, end_ids, lines, out) -> None:
    """Step the engine as long as anything is asked."""
    began: dict[str, float] = {}
    refusals = what_refuses()
    limit = engine.vllm_config.scheduler_config.max_num_seqs + WAITING
    more = True
    while more or began:
        while more and len(began) < limit:
            try:
                request = lines.get(block=not began)
            except queue.Empty:
                break
            if request is None:
                more = False
                break
            try:
                engine.add_request(request["id"], prompt(request), sampling(request, end_ids))
                began[request["id"]] = time.monotonic()
            except refusals as error:  # too long, most likely
                write_lines(out, {"id": request["id"], "error": str(error)})
        if not began:
            continue
        done = [answer(found, end_ids, began) for found in engine.step() if found.finished]
        if done:
            write_lines(out, *done)


def what_refuses():
    """List the exceptions that mean that one request, and not the engine, is at fault."""
    try:
        from vllm.exceptions import VLLMClientError
    except ImportError:  # an older vLLM, which has ValueError only
        return (ValueError,)
    return (ValueError, VLLMClientError)


def prompt(request):
    """Wrap prompt ids for vLLM, so that nothing is added to what the chat template wrote."""
    return {"prompt_token_ids": request["prompt"]}


def sampling(request, end_ids):
    """Make the SamplingParams of one request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=request["max_tokens"],
        temperature=request["temperature"],
        top_p=request["top_p"],
        seed=request["seed"],
        stop_token_ids=end_ids,
        detokenize=False,  # text is made of the ids by the one who asks
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def answer(found, end_ids, began):
    """Make the output line of a finished request."""
    output = found.outputs[0]
    ids = list(output.token_ids)
    if output.finish_reason == "stop" and ids and ids[-1] in end_ids:
        ids.pop()
    seconds = time.monotonic() - began.pop(found.request_id)
    line = {"id": found.request_id, "seconds": round(seconds, 4)}
    if output.finish_reason not in ("stop", "length"):
        return {**line, "error": f"vLLM ended the request with {output.finish_reason!r}"}
    return {**line, "ids": ids, "finish_reason": output.finish_reason}


def write_lines(out, *values) -> None:
    """Write a line of JSON for each value."""
    out.write("".join(json.dumps(value) + "\n" for value in values))
    out.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules are not those that vLLM means
    main()
