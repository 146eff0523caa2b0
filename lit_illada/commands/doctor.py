"""Runs the `doctor` command: reports what this machine supports and how to fix what is missing."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from lit_illada.model.config import AttentionKernel
from lit_illada.model.kernel_choice import LONGEST_MATMUL_ROW, choose_kernel
from lit_illada.runtime import packages
from lit_illada.runtime.console import Console
from lit_illada.runtime.cores import usable_cores
from lit_illada.runtime.packages import Finding, Verdict
from lit_illada.training.config.trainer import Accelerator, Precision

# package: purpose, and the extra that installs it
_OPTIONAL = {
    "flash-attn-4": ("the fastest attention on NVIDIA Hopper and later", "flash-attn-4"),
    "flash-attn": ("FlashAttention on NVIDIA GPUs, in place of torch's", "flash-attn"),
    "liger-kernel": ("a fused loss on NVIDIA GPUs", "liger"),
    "torchao": ("an optimizer with 8-bit states: optim/optimizer=adamw8bit", "torchao"),
    "submitit": ("sweeps on Slurm", "slurm"),
    "datasets": ("corpora from the Hugging Face hub", "hf"),
    "wandb": ("curves in Weights & Biases: logger=wandb", "wandb"),
    "gguf": ("conversion of GGUF files", "gguf"),
    "lm-eval": ("the tasks of lm-evaluation-harness", "eval"),
}
_CUDA_ONLY = ("flash-attn-4", "flash-attn", "liger-kernel")
_MIN_FREE_BYTES = 5e9


def run_doctor(json_file: Path | None) -> bool:
    """Print the findings and write them to `json_file`. Returns whether everything that every run needs works."""
    findings = list(examine())
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    previous = None
    for finding in findings:
        colour = {Verdict.good: "green", Verdict.absent: "yellow", Verdict.broken: "red"}[finding.verdict]
        section = "" if finding.section == previous else finding.section
        table.add_row(section, finding.name, Text(finding.verdict, style=colour), finding.seen)
        previous = finding.section
    console = Console()
    console.print(table, highlight=False)
    fixable = [finding for finding in findings if finding.fix]
    if fixable:
        console.print("\nTo fix:")
    for finding in fixable:
        console.print(f"  {finding.name}: {finding.fix}", highlight=False, soft_wrap=True)
    if json_file is not None:
        packages.write(findings, json_file)
    return all(finding.verdict is not Verdict.broken for finding in findings)


def examine() -> Iterator[Finding]:
    """Yield the findings of all checks, section by section."""
    yield from _machine()
    yield from _packages()
    yield from _devices()
    yield from _precision()
    yield from _attention()
    yield from _distributed()
    yield from _disk()
    yield from _slurm()


def _machine() -> Iterator[Finding]:
    supported = sys.version_info >= (3, 11)
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if supported:
        yield Finding("machine", "Python", python)
    else:
        yield Finding("machine", "Python", python, Verdict.broken, "install Python 3.11 or later")
    cores = len(usable_cores())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("machine", "processor", f"{cores} cores available, {memory / 1e9:.0f} GB of memory")


def _packages() -> Iterator[Finding]:
    yield from packages.examine()
    for name, (purpose, extra) in _OPTIONAL.items():
        version = _version(name)
        if version is not None:
            yield Finding("packages", name, f"{version}: {purpose}")
        elif name in _CUDA_ONLY and not torch.cuda.is_available():
            yield Finding("packages", name, "not installed; it needs a CUDA device", Verdict.absent)
        elif name.startswith("flash-attn") and any(map(_version, ("flash-attn", "flash-attn-4"))):
            yield Finding(
                "packages", name, "not installed: flash-attn and flash-attn-4 exclude each other", Verdict.absent
            )
        else:
            seen = f"not installed: {purpose}"
            yield Finding("packages", name, seen, Verdict.absent, f"pip install 'lit-illada[{extra}]'")


def _devices() -> Iterator[Finding]:
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        seen = (
            f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, compute {properties.major}.{properties.minor}"
        )
        yield Finding("devices", f"cuda:{index}", seen)
    if torch.cuda.is_available():
        yield Finding("devices", "CUDA", f"{torch.version.cuda}, the version torch was built with")
        return
    if shutil.which("nvidia-smi") is None:
        yield Finding("devices", "CUDA", "no NVIDIA driver: runs use the CPU", Verdict.absent)
        return
    reason, fix = "nvidia-smi exists, but torch finds no device", "check that nvidia-smi lists a GPU"
    if torch.version.cuda is None:
        reason, fix = f"torch {torch.__version__} is a CPU-only build", "pip install --force-reinstall torch"
    elif os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        reason, fix = "CUDA_VISIBLE_DEVICES hides every device", "unset CUDA_VISIBLE_DEVICES"
    yield Finding("devices", "CUDA", reason, Verdict.absent, fix)


def _precision() -> Iterator[Finding]:
    for accelerator in _accelerators():
        resolved = Precision.auto.resolve(accelerator)
        slow = "" if resolved is Precision.bf16_mixed else ": faster than bfloat16 on this processor"
        yield Finding("precision", f"auto on {accelerator}", f"{resolved}{slow}")


def _attention() -> Iterator[Finding]:
    for accelerator in _accelerators():
        dtype = Precision.auto.resolve(accelerator).dtype
        kernels = [
            choose_kernel(AttentionKernel.AUTO, accelerator.device.type, dtype, short) for short in (True, False)
        ]
        rows = f"{kernels[0]} for rows up to {LONGEST_MATMUL_ROW} tokens, {kernels[1]} for longer ones"
        yield Finding("attention", f"auto on {accelerator}", str(kernels[0]) if len(set(kernels)) == 1 else rows)


def _distributed() -> Iterator[Finding]:
    available = torch.distributed.is_available()
    if available and torch.distributed.is_gloo_available():
        yield Finding("distributed", "gloo", "for several processes on CPUs")
    else:
        yield Finding("distributed", "gloo", "missing from this build of torch: one process only", Verdict.absent)
    if available and torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "of torch"
        yield Finding("distributed", "NCCL", f"{version}, for several GPUs")
    else:
        fix = "pip install --force-reinstall torch" if torch.cuda.device_count() > 1 else None
        yield Finding("distributed", "NCCL", "missing from this build of torch: one GPU only", Verdict.absent, fix)


def _disk() -> Iterator[Finding]:
    for name in (".", "data", "runs"):
        exists = Path(name).exists()
        folder = Path(name if exists else ".")
        if not os.access(folder, os.W_OK):
            fix = f"chmod u+w {folder.resolve()}, or work in another folder"
            yield Finding("disk", name, "not writable", Verdict.broken, fix)
            continue
        free = shutil.disk_usage(folder).free
        seen = f"{free / 1e9:,.0f} GB free" + ("" if exists else ", not created yet")
        if free < _MIN_FREE_BYTES:
            fix = f"du -sh {folder.resolve()}/* shows what uses the space; lower trainer.keep_checkpoints"
            yield Finding("disk", name, seen, Verdict.absent, fix)
        else:
            yield Finding("disk", name, seen)


def _slurm() -> Iterator[Finding]:
    if shutil.which("sinfo") is None:
        yield Finding("Slurm", "sinfo", "not on this machine: sweeps run locally", Verdict.absent)
        return
    try:
        done = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=10, check=False)
        is_reachable, reason = done.returncode == 0, done.stderr.strip().partition("\n")[0]
    except subprocess.TimeoutExpired:
        is_reachable, reason = False, "no answer within 10 s"
    if is_reachable:
        yield Finding("Slurm", "sinfo", f"answers, {len(done.stdout.splitlines())} partition states")
    else:
        yield Finding(
            "Slurm", "sinfo", f"does not answer: {reason}", Verdict.absent, "scontrol ping says which daemon is down"
        )


def _accelerators() -> list[Accelerator]:
    return [Accelerator.cpu, *([Accelerator.gpu] if torch.cuda.is_available() else [])]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
