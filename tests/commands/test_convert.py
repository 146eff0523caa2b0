"""Import of published checkpoints, and export of runs."""

import dataclasses
import json
import multiprocessing
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from lit_illada import nll_bound
from lit_illada.batch import Layout
from lit_illada.checkpoints.hf import load_model, tensor_shapes, write_hf
from lit_illada.checkpoints.hf_layouts import LAYOUTS
from lit_illada.checkpoints.open import load_checkpoint, open_checkpoint
from lit_illada.checkpoints.safetensors_io import TensorFiles
from lit_illada.cli import main
from lit_illada.commands import convert
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig
from lit_illada.schema import to_tree
from lit_illada.training.checkpointing.files import latest_checkpoint
from lit_illada.training.checkpointing.reading import read_checkpoint
from lit_illada.training.checkpointing.writer import CheckpointWriter

CPU = torch.device("cpu")
SHORT = ["generation.max_new_tokens=16", "generation.block_length=8", "generation.num_steps=4"]


def lit_illada(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


def refused(*arguments):
    """The one-line error message of a failing command."""
    result = lit_illada(*arguments)
    assert result.exit_code == 1, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


def logits(folder):
    checkpoint = open_checkpoint(folder)
    ids = torch.arange(3, 20)[None]
    return load_model(checkpoint.model, checkpoint.tensors, CPU, torch.float32)(ids, Layout.whole_rows(1, 17))


@pytest.fixture(scope="module")
def trained(tiny_overrides, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert lit_illada("pretrain", *tiny_overrides, f"run_dir={run}", "trainer.max_steps=4").exit_code == 0
    return run


@pytest.fixture
def published(tmp_path, trained):
    """Write a random checkpoint in a published layout, with or without named special tokens."""

    def make(layout, *, names_mask=True, vocab_size=310, config_says=None, dtype=torch.float32, **changes):
        folder = tmp_path / f"hf-{layout}"
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        row = LAYOUTS[layout]
        config = ModelConfig(
            **sizes, vocab_size=vocab_size, is_causal=row.is_causal, predicts_next=row.predicts_next,
            attention_bias=layout in ("qwen2", "dream"), **changes,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(3)
        shapes = tensor_shapes(config).items()
        tensors = {n: torch.randn(s, generator=generator) * 0.1 + ("norm" in n) for n, s in shapes}
        folder.mkdir()
        tokenizer = Tokenizer.load(trained / "tokenizer")
        ids = {"mask_token_id": tokenizer.mask_token_id, "eos_token_id": tokenizer.eos_token_id}
        write_hf(folder, row, config, tensors, dtype=dtype, max_shard_bytes=30_000, **ids)
        shutil.copytree(trained / "tokenizer", folder, dirs_exist_ok=True)
        edit(folder / "config.json", config_says or {})
        if not names_mask:
            edit(folder / "tokenizer_config.json", {"mask_token": None, "added_note": "kept"})
        (folder / "modeling.py").write_text("raise SystemExit('executed')")
        return folder

    return make


def edit(path, changes):
    """Change fields of a JSON object; those that are null are left out."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("to", ["illada", "llada"])
def test_a_run_is_unchanged_by_an_export_and_import(to, trained, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    result = lit_illada("convert", trained, out, "--to", to, "--max-shard-gb", "0.00003")
    assert result.exit_code == 0, result.output
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (trained / "tokenizer" / name).read_bytes()
    result = lit_illada("convert", out, back)
    assert result.exit_code == 0, result.output
    assert torch.equal(logits(trained), logits(back))
    assert open_checkpoint(back).tokenizer.sha256 == open_checkpoint(trained).tokenizer.sha256
    texts = [lit_illada("generate", run, "--prompt", "alpha", *SHORT).stdout for run in (trained, back)]
    assert texts[0] == texts[1]


def test_the_table_lists_every_kind_of_tensor(trained, tmp_path):
    result = lit_illada("convert", trained, tmp_path / "out", "--to", "llada", "--dtype", "bfloat16")
    (line,) = [line.split() for line in result.output.splitlines() if "ff_proj" in line]
    assert line == ["2", "64×32", "float32", "→", "bfloat16", "model.layers.N.mlp.gate_proj.weight", "→",
                    "model.transformer.blocks.N.ff_proj.weight"]  # fmt: skip
    assert "all tensors are mapped" in result.output


def test_the_fitting_layout_is_the_default_and_others_are_rejected(trained, tmp_path):
    assert lit_illada("convert", trained, tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "illada"
    message = refused("convert", trained, tmp_path / "other", "--to", "llama")
    assert "the llama layout cannot hold this model: its attention is causal; those that can: illada, llada" in message
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("layout", "mask"), [("illada", "<[MASK]>"), ("llada", "<|mdm_mask|>"), ("dream", "<|mask|>")])
def test_the_mask_token_is_taken_from_the_layout(layout, mask, published, tmp_path):
    folder = published(layout, names_mask=False, config_says={"mask_token_id": None})
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|mask|>", mask))
    assert lit_illada("convert", folder, tmp_path / "in").exit_code == 0
    tokenizer = open_checkpoint(tmp_path / "in").tokenizer
    assert tokenizer.names.mask_token == mask
    assert (tmp_path / "in" / "tokenizer" / "tokenizer.json").read_bytes() == file.read_bytes()
    assert json.loads((tmp_path / "in" / "tokenizer" / "tokenizer_config.json").read_text())["added_note"] == "kept"


def test_the_mask_token_is_read_from_the_models_config(published, tmp_path):
    folder = published("llada", names_mask=False)
    assert lit_illada("convert", folder, tmp_path / "in").exit_code == 0
    assert open_checkpoint(tmp_path / "in").tokenizer.names.mask_token == "<|mask|>"


def test_an_autoregressive_model_gets_a_mask_token_in_a_spare_row(published, tmp_path):
    folder = published("qwen2", names_mask=False)
    assert "give --mask-token" in refused("convert", folder, tmp_path / "in")
    assert lit_illada("convert", folder, tmp_path / "in", "--mask-token", "<mask>").exit_code == 0
    tokenizer = open_checkpoint(tmp_path / "in").tokenizer
    assert tokenizer.mask_token_id == 300
    assert tokenizer.vocab_size == 301
    assert Backend.from_file(str(folder / "tokenizer.json")).token_to_id("<mask>") is None


def test_mask_and_end_tokens_that_cannot_serve_are_refused(published, tmp_path):
    folder = published("qwen2", names_mask=False)
    message = refused("convert", folder, tmp_path / "in", "--mask-token", "<|eos|>")
    assert "'<|eos|>' is both mask_token and eos_token: name another as one of them" in message
    message = refused("convert", folder, tmp_path / "in", "--mask-token", "<mask>", "--eos-token", "<|end|>")
    assert "has no token '<|end|>': give one of its tokens by --eos-token" in message
    assert not (tmp_path / "in").exists()


def test_a_causal_checkpoint_is_imported_and_exported(published, tmp_path):
    folder = published("llama")
    result = lit_illada("convert", folder, tmp_path / "in")
    assert result.exit_code == 0
    assert "lit-illada generate" not in result.output  # the sampler is the diffusion models'
    assert lit_illada("convert", tmp_path / "in", tmp_path / "out").exit_code == 0
    edit(tmp_path / "out" / "config.json", {})
    configs = [json.loads((each / "config.json").read_text()) for each in (folder, tmp_path / "out")]
    assert configs[0] == configs[1]
    before, after = ({n: t for f in d.glob("*.safetensors") for n, t in load_file(f).items()}
                     for d in (folder, tmp_path / "out"))  # fmt: skip
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_a_spare_row_no_mask_token_is_added(published, tmp_path):
    folder = published("llama", names_mask=False, vocab_size=300)
    assert "the embedding of 300 rows has no unused one" in refused(
        "convert", folder, tmp_path / "in", "--mask-token", "<m>"
    )


def test_a_tokenizer_that_contradicts_the_checkpoint_is_rejected(published, tmp_path):
    folder = published("illada", vocab_size=290)
    message = refused("convert", folder, tmp_path / "in")
    assert "the tokenizer has 300 tokens, but the embedding only 290 rows" in message
    shutil.rmtree(folder)
    folder = published("illada", config_says={"mask_token_id": 7})
    assert "the mask token is '<|mask|>' in the tokenizer and" in refused("convert", folder, tmp_path / "in")
    shutil.rmtree(folder)
    folder = published("illada", config_says={"mask_token_id": 305})
    assert "names mask token 305, which the tokenizer does not have" in refused("convert", folder, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_no_code_of_a_checkpoint_runs_or_is_copied(published, tmp_path):
    assert lit_illada("convert", published("illada"), tmp_path / "in").exit_code == 0
    assert not list((tmp_path / "in").rglob("*.py"))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickled_checkpoint_is_rejected_without_executing_it(published, tmp_path):
    folder = published("illada")
    for file in folder.glob("model*"):
        if file.suffix != ".py":
            file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    assert "pytorch_model.bin is a pickle" in refused("convert", folder, tmp_path / "in")
    assert "not a readable checkpoint" in refused("convert", folder / "pytorch_model.bin", tmp_path / "in")
    assert not (tmp_path / "executed").exists()


def test_damage_is_reported_in_one_line_and_leaves_no_folder(published, tmp_path):
    folder, target = published("illada"), tmp_path / "in"
    shard = min(folder.glob("*.safetensors"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    assert "not a valid safetensors file" in refused("convert", folder, target)
    shard.unlink()
    assert "shards are missing" in refused("convert", folder, target)
    shard.write_bytes(content)
    edit(folder / "config.json", {"intermediate_size": 65})
    result = lit_illada("convert", folder, target)
    assert result.output.count("has shape") == 6 + 3  # each of the six tensors, and three of them in the summary
    assert "; and 3 more" in result.output.splitlines()[-1]
    (folder / "config.json").write_text("{")
    assert "config.json: not JSON" in refused("convert", folder, target)
    (folder / "config.json").unlink()
    assert "no run there" in refused("convert", folder, target)
    assert not target.exists()
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_an_existing_folder_is_not_overwritten(trained, tmp_path):
    (tmp_path / "there").mkdir()
    assert lit_illada("convert", trained, tmp_path / "there").exit_code == 0
    assert "already exists" in refused("convert", trained, tmp_path / "there")


@pytest.mark.parametrize("here", [".", "../here"])
def test_the_current_folder_is_not_replaced(here, trained, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = lit_illada("convert", trained, here, "--to", "llada")
    assert result.exit_code == 1
    assert "is the current folder" in result.output
    assert result.output.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_missing_or_malformed_tokenizer_file_is_reported(published, tmp_path):
    folder = published("illada")
    (folder / "tokenizer.json").write_text("{}")
    assert "not readable by the tokenizers library" in refused("convert", folder, tmp_path / "in")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refused("convert", folder, tmp_path / "in")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalEntryNotFoundError("An error happened\nmore"), "the hub could not be reached (An error happened)"),
        (ConnectionError("refused"), "the hub could not be reached (refused)"),
    ],
)
def test_an_unreachable_hub_is_reported(error, message, monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise error

    monkeypatch.setattr(convert, "snapshot_download", unreachable)
    assert message in refused("convert", "someone/model", tmp_path / "in")
    assert "and no hub id" in refused("convert", "no-such-folder", tmp_path / "in")


def test_only_safetensors_and_json_are_downloaded(published, monkeypatch, tmp_path):
    request = {}

    def downloaded(repository, **options):
        request.update(options, repository=repository)
        return str(published("illada"))

    monkeypatch.setattr(convert, "snapshot_download", downloaded)
    assert lit_illada("convert", "someone/model", tmp_path / "in", "--revision", "main").exit_code == 0
    assert (request["repository"], request["revision"]) == ("someone/model", "main")
    assert not [pattern for pattern in request["allow_patterns"] if pattern.endswith((".py", ".bin", ".pt", "*"))]


def test_a_missing_repository_is_reported(monkeypatch, tmp_path):
    def absent(*_, **__):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # its own maker wants an HTTP response

    monkeypatch.setattr(convert, "snapshot_download", absent)
    assert "no such repository on the hub" in refused("convert", "someone/model", tmp_path / "in")


def test_a_run_that_starts_from_imported_weights_has_their_model(published, tiny_dataset, tiny_run, trained, tmp_path):
    """As in Dream: a causal model is trained further as a bidirectional one that predicts the next position."""
    source, run = tmp_path / "qwen", tmp_path / "run"
    assert lit_illada("convert", published("qwen2", dtype=torch.bfloat16), source).exit_code == 0
    training = [line for line in tiny_run if not line.startswith("model.")]
    overrides = [*tiny_dataset, *training, f"run_dir={run}", "trainer.max_steps=3"]
    dream = ["model.is_causal=false", "model.predicts_next=true"]
    result = lit_illada("pretrain", "--init-from", source, *overrides, "optim.optimizer.learning_rate=1e-12", *dream)
    assert result.exit_code == 0, result.output
    before, after = open_checkpoint(source), open_checkpoint(run)
    assert after.model.attention_bias
    assert (after.model.is_causal, after.model.predicts_next) == (False, True)
    for name, tensor in before.tensors.items():
        torch.testing.assert_close(after.tensors[name], tensor.float(), atol=1e-8, rtol=0)
    assert lit_illada("generate", run, "--prompt", "alpha", *SHORT).exit_code == 0
    result = lit_illada("pretrain", "--resume", run, "trainer.max_steps=4")
    assert result.exit_code == 0, result.output
    assert lit_illada("convert", run, tmp_path / "dream").exit_code == 0
    assert json.loads((tmp_path / "dream" / "config.json").read_text())["model_type"] == "Dream"


def test_the_commands_printed_by_convert_work(published, tiny_corpus, tiny_run, tmp_path, monkeypatch):
    """With a tokenizer that had no mask token before."""
    monkeypatch.chdir(tmp_path)
    result = lit_illada("convert", published("llama", names_mask=False), "in", "--mask-token", "<mask>")
    lines = [line.split() for line in result.output.splitlines()]
    prepare, pretrain = ([w.replace("DIR", "data") for w in line[2:]] for line in lines if line[1:2] == ["lit-illada"])
    corpus = ["data=text", f"data.source.paths=[{tiny_corpus}]", "data.num_processes=1", "data.validation_fraction=0.2"]
    assert lit_illada(*prepare, *corpus, "data.shard_tokens=1024").exit_code == 0
    training = [line for line in tiny_run if not line.startswith("model.")]
    dream = ["model.is_causal=false", "model.predicts_next=true", "run_dir=run", "trainer.max_steps=2"]
    result = lit_illada(*pretrain, *training, *dream)
    assert result.exit_code == 0, result.output
    assert open_checkpoint(Path("run")).tokenizer.mask_token_id == 300


def test_weights_that_do_not_fit_the_run_are_rejected(published, tiny_overrides, tiny_dataset, trained, tmp_path):
    source, run = tmp_path / "in", f"run_dir={tmp_path / 'run'}"
    assert lit_illada("convert", published("illada"), source).exit_code == 0
    small = ["data.row_length=32", "trainer.accelerator=cpu"]
    message = refused("pretrain", "--init-from", source, *tiny_overrides, run)
    assert "contains another model (" in message
    assert "num_key_value_heads: 2 there, 1 in the config" in message
    message = refused("pretrain", "--init-from", source, *tiny_dataset, *small, run, "model=nano")
    assert "the checkpoint determines the model: leave out model=nano" in message
    file = source / "tokenizer" / "tokenizer_config.json"
    edit(file, {"eos_token": "<|user|>"})
    assert "tokenizer_config.json: damaged, " in refused("generate", source, "--prompt", "a")
    (source / "checksums.json").unlink()
    assert "not the tokenizer that weights.safetensors" in refused("generate", source, "--prompt", "a")
    assert not (tmp_path / "run").exists()
    assert "give --resume or --init-from" in refused("pretrain", "--init-from", source, "--resume", trained)


def test_a_data_set_of_another_tokenizer_is_rejected(published, tiny_dataset, tmp_path):
    folder, source = published("illada"), tmp_path / "in"
    edit(folder / "tokenizer_config.json", {"eos_token": "<|user|>"})
    assert lit_illada("convert", folder, source).exit_code == 0
    small = ["data.row_length=32", "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}"]
    message = refused("pretrain", "--init-from", source, *tiny_dataset, *small)
    assert f"data/tokenizer=load data.tokenizer.path={source / 'tokenizer'}" in message


def test_foreign_checkpoints_are_rejected_with_the_convert_command(published, tmp_path):
    folder = published("illada")
    assert f"run lit-illada convert {folder} FOLDER" in refused("generate", folder, "--prompt", "a")
    shard = min(folder.glob("*.safetensors"))
    assert "convert its folder first" in refused("generate", shard, "--prompt", "a")


def test_a_converted_folder_cannot_be_resumed(published, tmp_path):
    assert lit_illada("convert", published("illada"), tmp_path / "in").exit_code == 0
    assert "no run there" in refused("pretrain", "--resume", tmp_path / "in")


def test_loading_preserves_the_weights_dtype(published, tmp_path):
    folder = published("illada", dtype=torch.bfloat16)
    assert lit_illada("convert", folder, tmp_path / "in").exit_code == 0
    model, _ = load_checkpoint(tmp_path / "in", CPU)
    assert model.lm_head_weight.dtype is torch.bfloat16
    assert lit_illada("generate", tmp_path / "in", "--prompt", "alpha", *SHORT).exit_code == 0
    assert lit_illada("convert", tmp_path / "in", tmp_path / "up", "--to", "lit", "--dtype", "float32").exit_code == 0
    up = load_checkpoint(tmp_path / "up", CPU)[0]
    assert torch.equal(up.lm_head_weight, model.lm_head_weight.float())
    # 32-true computes in float32 whatever the stored type; many CPUs multiply bfloat16 a hundred times slower
    written = [lit_illada("generate", tmp_path / name, "--prompt", "alpha", *SHORT) for name in ("in", "up")]
    assert written[0].stdout == written[1].stdout
    bounds = [nll_bound(tmp_path / name, "alpha beta gamma") for name in ("in", "up")]
    assert bounds[0] == bounds[1]


def test_a_checkpoint_with_a_missing_tensor_is_rejected(published, tmp_path):
    assert lit_illada("convert", published("illada"), tmp_path / "in").exit_code == 0
    file = tmp_path / "in" / "checkpoints" / "weights.safetensors"
    metadata = TensorFiles([file]).metadata
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file, metadata)
    (tmp_path / "in" / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"model\.norm\.weight is missing"):
        open_checkpoint(tmp_path / "in")


def _write_shared(rank, store, path, content):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    shared = {name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in content["state_dict"].items()}
    writer = CheckpointWriter(is_async=False)
    writer.save_checkpoint({**content, "state_dict": shared}, path)
    torch.distributed.barrier()
    writer.publish()
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_checkpoint_of_two_processes_is_merged_without_a_second_copy(trained, tmp_path):
    """A model of 67 MB in two parts is in memory once during conversion."""
    run, config = tmp_path / "run", open_checkpoint(trained).model
    shutil.copytree(trained / "tokenizer", run / "tokenizer")
    path = run / "checkpoints" / "step=00000004.ckpt"
    path.parent.mkdir()
    large = dataclasses.replace(config, hidden_size=512, intermediate_size=2048, num_hidden_layers=4)
    content = read_checkpoint(latest_checkpoint(trained / "checkpoints"))
    hparams = content["hyper_parameters"]
    generator = torch.Generator().manual_seed(0)
    weights = {f"model.{n}": torch.randn(s, generator=generator) for n, s in tensor_shapes(large).items()}
    content = {
        "hyper_parameters": {**hparams, "config": {**hparams["config"], "model": to_tree(large)}},
        "state_dict": weights,
    }
    context = multiprocessing.get_context("fork")
    writing = [context.Process(target=_write_shared, args=(n, tmp_path / "store", path, content)) for n in (0, 1)]
    for process in writing:
        process.start()
    for process in writing:
        process.join(120)
        assert process.exitcode == 0
    wanted = {name: value.double().sum() for name, value in weights.items()}
    del weights, content

    def held_mb():
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024

    at_first_mb, seen_mb, is_over = held_mb(), [], threading.Event()

    def watch():
        while not is_over.wait(0.001):
            seen_mb.append(held_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = lit_illada("convert", run, tmp_path / "out", "--to", "lit")
    is_over.set()
    watcher.join()
    assert result.exit_code == 0, result.output
    model_mb = sum(torch.Size(shape).numel() for shape in tensor_shapes(large).values()) * 4 / 2**20
    assert model_mb > 60
    assert len(seen_mb) > 10
    assert max(seen_mb) - at_first_mb < 1.3 * model_mb
    converted = load_file(tmp_path / "out" / "checkpoints" / "weights.safetensors")
    assert {f"model.{name}": value.double().sum() for name, value in converted.items()} == wanted


@pytest.fixture
def causal(published, tmp_path):
    """A run's folder in our format whose model the qwen2 layout holds, with a tokenizer of ours."""
    source = published("qwen2", config_says={"bos_token_id": 5, "pad_token_id": 6})
    assert lit_illada("convert", source, tmp_path / "c").exit_code == 0
    return tmp_path / "c"


def test_bos_and_padding_tokens_are_preserved_by_a_round_trip(causal, tmp_path):
    assert lit_illada("convert", causal, tmp_path / "out", "--to", "qwen2").exit_code == 0
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (content["bos_token_id"], content["pad_token_id"]) == (5, 6)


def test_a_qwen2_export_names_a_tokenizer_class_that_reads_tokenizer_json_unchanged(causal, tmp_path):
    """transformers 5 replaces a general class by Qwen2's rules, unless `auto_map` names one."""
    out = tmp_path / "out"
    assert lit_illada("convert", causal, out, "--to", "qwen2").exit_code == 0
    config = json.loads((out / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["auto_map"] == {"AutoTokenizer": [None, "tokenization_plain.PlainTokenizer"]}
    assert "class PlainTokenizer(PreTrainedTokenizerFast):" in (out / "tokenization_plain.py").read_text()
    assert lit_illada("convert", out, tmp_path / "back").exit_code == 0
    assert "auto_map" not in json.loads((tmp_path / "back" / "tokenizer" / "tokenizer_config.json").read_text())
    assert open_checkpoint(tmp_path / "back").tokenizer.sha256 == open_checkpoint(causal).tokenizer.sha256


@pytest.mark.slow
def test_transformers_reads_an_exported_tokenizer_as_ours(causal, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours, out = open_checkpoint(causal).tokenizer, tmp_path / "out"
    assert lit_illada("convert", causal, out, "--to", "qwen2").exit_code == 0
    text = "alpha beta 12345 don't  x\n\n  y Zürich"
    for options in ({}, {"trust_remote_code": True}):
        theirs = transformers.AutoTokenizer.from_pretrained(out, **options)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
        assert (theirs.eos_token_id, theirs.bos_token_id, theirs.pad_token_id) == (ours.eos_token_id, 5, 6)
