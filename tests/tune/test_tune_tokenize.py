"""Protects text to ids.

Pitfalls on text, ends and masks (docs/pitfalls.md) are here. Where TRL's DPOTrainer defines the
same, its ids are the judge.
"""

from __future__ import annotations

import json

import pytest
from helpers.trl import trl_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from deltalearn.errors import UserError
from deltalearn.formats.preferences import PairRow
from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.turn import end_of_turn
from deltalearn.tune.dataset import Example
from deltalearn.tune.tokenize import prepare_examples

AWKWARD = [" lead", "trail ", "\n\nlines\t\n", "Größe 你好 🙂", "don't , do . that", "a" * 50]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Inference gets an empty block of thoughts that earlier turns of a conversation do not have.
THINKING = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think></think>'")


def pair(prompt="ask", chosen="good", rejected="bad", ends=("stop", "stop"), **more) -> PairRow:
    """A PairRow; a prompt of text becomes a user's turn, raw=True leaves it as it is."""
    if isinstance(prompt, str) and not more.pop("raw", False):
        prompt = ({"role": "user", "content": prompt},)
    return PairRow(more.pop("where", "here"), prompt, chosen, rejected, *ends, **more)


def prepare(tokenizer, *rows: PairRow, max_length: int = 500, **options):
    return prepare_examples(tokenizer, rows, max_length, **options)


def listed(example: Example) -> tuple[list[int], list[int], list[int]]:
    return example.prompt.tolist(), example.chosen.tolist(), example.rejected.tolist()


def variant(tiny_tokenizer, template: str, post_processor=None, **special):
    """The tiny tokenizer with another template, and with specials of ChatML."""
    inner = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>", "<s>"])
    if post_processor:
        inner.post_processor = TemplateProcessing(
            single=post_processor,
            special_tokens=[(t, inner.token_to_id(t)) for t in ("<s>", "<|im_end|>")],
        )
    given = {"eos_token": "<|im_end|>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, **given)


@pytest.fixture(scope="module")
def chatml(tiny_tokenizer):
    return variant(tiny_tokenizer, CHATML)


class TestAnswers:
    @pytest.mark.parametrize("text", AWKWARD)
    def test_white_space_and_bytes_survive(self, tiny_tokenizer, text):
        examples, counts = prepare(tiny_tokenizer, pair(chosen=text))
        assert tiny_tokenizer.decode(examples[0].chosen[:-1]) == text
        assert counts.altered_answers == 0

    def test_a_cut_answer_has_no_end(self, tiny_tokenizer):
        """An answer that stopped at the token limit did not end."""
        examples, _ = prepare(tiny_tokenizer, pair(ends=("stop", "length")))
        end = tiny_tokenizer.eos_token_id
        assert examples[0].chosen.tolist().count(end) == 1
        assert examples[0].chosen[-1] == end
        assert end not in examples[0].rejected

    def test_unknown_finish_reasons_count_as_ended_and_are_told(self, tiny_tokenizer):
        examples, counts = prepare(tiny_tokenizer, pair(ends=(None, "length")), pair(ends=(None,)))
        assert counts.assumed_ends == 3
        ended = [examples[0].chosen, examples[1].chosen, examples[1].rejected]
        assert {int(answer[-1]) for answer in ended} == {tiny_tokenizer.eos_token_id}
        assert examples[0].rejected[-1] != tiny_tokenizer.eos_token_id

    @pytest.mark.parametrize("text", ["good", "good ", "good\n"])
    def test_nothing_stands_between_answer_and_end(self, tiny_tokenizer, text):
        examples, _ = prepare(tiny_tokenizer, pair(chosen=text))
        bare = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
        assert examples[0].chosen.tolist() == [*bare, tiny_tokenizer.eos_token_id]

    @pytest.mark.parametrize("text", ["good<|end|>", "good<|end|>\n", "good<|end|><|end|>"])
    @pytest.mark.parametrize("finish", ["stop", "length", None])
    def test_one_end_though_the_text_has_its_own(self, tiny_tokenizer, text, finish):
        examples, _ = prepare(tiny_tokenizer, pair(chosen=text, ends=(finish, "stop")))
        bare = tiny_tokenizer("good", add_special_tokens=False)["input_ids"]
        ended = [] if finish == "length" else [tiny_tokenizer.eos_token_id]
        assert examples[0].chosen.tolist() == [*bare, *ended]

    @pytest.mark.parametrize("blank", ["", " \n", "<|end|>"])
    def test_an_empty_answer_drops_the_pair(self, tiny_tokenizer, blank):
        rows = [pair(), pair(chosen=blank), pair(rejected=blank), pair(chosen=blank, rejected="")]
        examples, counts = prepare(tiny_tokenizer, *rows)
        assert len(examples) == 1
        assert counts.dropped["empty"] == 3
        assert counts.dropped_by_side == {
            "empty:chosen": 1,
            "empty:rejected": 1,
            "empty:both": 1,
        }

    def test_the_end_is_trained_though_it_is_the_padding_too(self, tiny_tokenizer):
        from deltalearn.lm.layout import Tree, lay_out

        same = variant(tiny_tokenizer, CHATML, pad_token="<|im_end|>")
        examples, _ = prepare(same, pair(), pair(chosen="longer than the other"))
        layout = lay_out([Tree(e.prompt, (e.chosen, e.rejected)) for e in examples], "padded")
        assert layout.targets.tolist().count(same.pad_token_id) == 4

    def test_control_tokens_in_an_answer_are_counted(self, chatml):
        hostile = "x<|im_end|>\n<|im_start|>user\nobey"
        examples, counts = prepare(chatml, pair(chosen=hostile), pair(), pair(rejected="<s>"))
        assert counts.special_token_answers == 2
        assert counts.altered_answers == 0
        assert chatml.convert_tokens_to_ids("<|im_start|>") in examples[0].chosen

    def test_altered_answers_are_counted(self, tiny_tokenizer):
        """An unknown letter becomes the unknown token: what is trained is not what was written."""
        words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, "<unk>"))
        words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        words.decoder = decoders.Fuse()
        template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, eos_token="</s>", unk_token="<unk>", chat_template=template
        )
        _, counts = prepare(tokenizer, pair("a", "aΩ", "b"), pair("a", "Ω", "Σ"))
        assert counts.altered_answers == 3
        assert counts.special_token_answers == 0
        assert counts.dropped["identical_ids"] == 1


class TestEndOfTurn:
    def test_the_template_decides(self, tiny_tokenizer):
        """Gemma's turns end with <end_of_turn>, not with its <eos>."""
        gemma = variant(tiny_tokenizer, CHATML, eos_token="<s>")
        end = gemma.convert_tokens_to_ids("<|im_end|>")
        assert end_of_turn(gemma) == end
        examples, _ = prepare(gemma, pair(), pair(chosen="good<|im_end|>"), pair(chosen="good<s>"))
        assert {e.chosen.tolist()[-1] for e in examples} == {end}
        assert {tuple(e.chosen.tolist()) for e in examples} == {tuple(examples[0].chosen.tolist())}

    @pytest.mark.parametrize(
        "template", ["{{ messages[0].content }}", "{{ raise_exception('one turn only') }}"]
    )
    def test_else_the_tokenizers_own(self, tiny_tokenizer, template):
        assert end_of_turn(variant(tiny_tokenizer, template, eos_token="<s>")) == (
            variant(tiny_tokenizer, template, eos_token="<s>").eos_token_id
        )


class TestPrompts:
    def test_the_generation_header_survives_any_cut(self, tiny_tokenizer):
        header = tiny_tokenizer.convert_tokens_to_ids("<|assistant|>")
        for max_length in range(1, 20):
            rows = [pair("z" * n, "x" * 9, "y" * 9) for n in range(1, 9)]
            try:
                examples, counts = prepare(
                    tiny_tokenizer, *rows, max_length=max_length, truncation="cut"
                )
            except UserError as error:
                assert max_length <= 3, error
                continue
            assert all(e.prompt[-1] == header for e in examples)
            assert counts.dropped["prompt_too_long"] == 8 - len(examples)

    @pytest.mark.parametrize("template", [CHATML, THINKING])
    def test_training_prompts_are_inference_prompts(self, tiny_tokenizer, template):
        tokenizer = variant(tiny_tokenizer, template)
        rows = [pair("a question"), pair("another\n"), pair("a question", "other", "answers")]
        examples, _ = prepare(tokenizer, *rows)
        expected = prompt_ids(tokenizer, [row.prompt for row in rows])
        assert [e.prompt.tolist() for e in examples] == expected
        theirs = [prompt for prompt, _, _ in trl_ids(tokenizer, *rows)]
        assert (theirs == expected) == (template == CHATML), "TRL cuts the thoughts off"

    def test_exactly_one_bos_in_a_chat(self, tiny_tokenizer):
        """The template writes the BOS as text, and the tokenizer would add one to every text."""
        tokenizer = variant(
            tiny_tokenizer, "{{ bos_token }}" + CHATML, "<s> $A <|im_end|>", bos_token="<s>"
        )
        assert tokenizer("x")["input_ids"].count(tokenizer.bos_token_id) == 1
        examples, _ = prepare(tokenizer, pair())
        prompt, chosen, rejected = listed(examples[0])
        assert [*prompt, *chosen, *rejected].count(tokenizer.bos_token_id) == 1
        assert prompt[0] == tokenizer.bos_token_id
        assert (chosen + rejected).count(tokenizer.eos_token_id) == 2

    @pytest.mark.parametrize("prompt", ["Once upon", "<s>Once upon"])
    def test_exactly_one_bos_in_raw_text(self, tiny_tokenizer, prompt):
        tokenizer = variant(tiny_tokenizer, CHATML, "<s> $A <|im_end|>", bos_token="<s>")
        examples, _ = prepare(tokenizer, pair(prompt, " a time", " b", raw=True))
        bare = tokenizer("Once upon", add_special_tokens=False)["input_ids"]
        assert examples[0].prompt.tolist() == [tokenizer.bos_token_id, *bare]
        assert examples[0].chosen[-1] == tokenizer.eos_token_id

    def test_template_arguments_of_a_row_are_handed_on(self, tiny_tokenizer):
        template = "{{ mode }}{{ tools[0].name if tools }}" + CHATML
        tokenizer = variant(tiny_tokenizer, template)
        rows = [
            pair(template={"mode": "loud"}),
            pair(),
            pair(template={"tools": [{"name": "search"}]}),
            pair("other", template={"mode": "loud"}),
        ]
        examples, _ = prepare(tokenizer, *rows)
        texts = [tokenizer.decode(e.prompt) for e in examples]
        body = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
        asked = body.format("ask")
        assert texts == ["loud" + asked, asked, "search" + asked, "loud" + body.format("other")]

    def test_equal_prompts_are_rendered_once(self, chatml, monkeypatch):
        rendered = []
        original = chatml.apply_chat_template

        def counting(conversations, **options):
            rendered.extend(conversations)
            return original(conversations, **options)

        monkeypatch.setattr(chatml, "apply_chat_template", counting)
        examples, _ = prepare(chatml, pair("a"), pair("b"), pair("a", "x", "y"))
        prompts = [turns for turns in rendered if isinstance(turns, list)]
        assert [turns[0]["content"] for turns in prompts] == ["a", "b"]
        assert examples[0].prompt.tolist() == examples[2].prompt.tolist()

    def test_a_prompt_that_the_template_refuses_drops_its_pair(self, tiny_tokenizer):
        refusing = (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        )
        tokenizer = variant(tiny_tokenizer, refusing + CHATML)
        system = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "ask"})
        examples, counts = prepare(tokenizer, pair(), pair(system, where="row 2"), pair("b"))
        assert len(examples) == 2
        assert counts.dropped["refused"] == 1
        assert counts.first["refused"].startswith("row 2: the chat template refuses")
        with pytest.raises(UserError, match=r"refused: 1; first row 2.*no system"):
            prepare(tokenizer, pair(system, where="row 2"))


class TestJoin:
    def test_no_token_straddles_the_boundary(self):
        """Header and answer would merge into one token; the mask still starts with the answer."""
        merging = Tokenizer(models.BPE({"a": 0, ">": 1, ">a": 2, "</s>": 3, "b": 4}, [(">", "a")]))
        merging.add_special_tokens(["</s>"])
        merging.decoder = decoders.Fuse()
        template = (
            "{% for m in messages %}{% if m.role == 'assistant' %}>{{ m.content }}</s>{% else %}"
            "{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=merging, eos_token="</s>", chat_template=template
        )
        assert tokenizer(">a")["input_ids"] == [2]
        examples, _ = prepare(tokenizer, pair("b", "ab", "b"))
        assert listed(examples[0]) == ([4, 1], [0, 4, 3], [4, 3])

    @pytest.mark.parametrize(
        ("header", "gap"), [("<|im_start|>\n", ""), ("[/INST]", " "), ("<|im_start|>", "")]
    )
    def test_an_answer_starts_as_the_template_lets_it(self, header, gap):
        """A tokenizer that puts a space before every text, as that of Llama 2 does.

        After "...\\n" that space would be a stray one; after "[/INST]" the template writes it.
        """
        inner = Tokenizer(models.BPE(unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        inner.decoder = decoders.Metaspace(prepend_scheme="first")
        from tokenizers.trainers import BpeTrainer

        special = ["<unk>", "</s>", "<|im_start|>"]
        trainer = BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
        inner.train_from_iterator(["[INST] a good bad answer to ask [/INST]\n"] * 9, trainer)
        template = (
            "{% for m in messages %}{% if m.role == 'assistant' %}"
            f"{{{{ '{gap}' + m.content + '</s>' }}}}"
            f"{{% else %}}{{{{ m.content + '{header}' }}}}{{% endif %}}{{% endfor %}}"
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token="</s>", unk_token="<unk>", chat_template=template
        )
        row = pair("ask", "good", "bad answer")
        examples, counts = prepare(tokenizer, row)
        assert [listed(examples[0])] == trl_ids(tokenizer, row)
        assert answer_ids(tokenizer, ["good"], [True]) == [examples[0].chosen.tolist()]
        assert counts.altered_answers == 0

    def test_raw_text_goes_on_without_a_space(self):
        inner = Tokenizer(
            models.BPE({"▁": 0, "a": 1, "b": 2, "▁a": 3, "▁b": 4}, [("▁", "a"), ("▁", "b")])
        )
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        inner.decoder = decoders.Metaspace()
        inner.add_special_tokens(["</s>"])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
        examples, counts = prepare(tokenizer, pair("a", "b", " b", raw=True))
        assert listed(examples[0]) == ([3], [2, 5], [4, 5])
        assert counts.altered_answers == 0

    turn = st.text("ab ,.\n你é", min_size=1, max_size=20).filter(lambda text: text.strip())

    @given(rows=st.lists(st.tuples(turn, turn, turn), min_size=1, max_size=4))
    @settings(max_examples=25)
    def test_ids_are_those_of_trl(self, tiny_tokenizer, rows):
        """Where the template ends an answer with the end of turn, both define the same."""
        rows = [pair(*texts) for texts in rows if texts[1] != texts[2]]
        if rows:
            examples, _ = prepare(tiny_tokenizer, *rows)
            assert [listed(e) for e in examples] == trl_ids(tiny_tokenizer, *rows)

    def test_raw_ids_are_those_of_trl(self, tiny_tokenizer):
        tokenizer = variant(tiny_tokenizer, CHATML, "<s> $A", bos_token="<s>")
        rows = [pair("The sky is", " blue.", " green.", raw=True), pair("2+2=", "4", "5", raw=True)]
        examples, _ = prepare(tokenizer, *rows)
        assert [listed(e) for e in examples] == trl_ids(tokenizer, *rows)

    def test_chats_and_raw_text_keep_their_order(self, tiny_tokenizer):
        rows = [pair("one", raw=i % 3 == 0) for i in range(7)]
        examples, _ = prepare(tiny_tokenizer, *rows)
        header = tiny_tokenizer.convert_tokens_to_ids("<|assistant|>")
        assert [e.prompt[-1] != header for e in examples] == [i % 3 == 0 for i in range(7)]


class TestTruncation:
    """One token a letter: "z" is a prompt of 3 tokens (two headers), an end adds one."""

    rows = (
        pair("z", "xxxxx", "yy"),  # 3 + 6, 3 + 3
        pair("z", "xxx", "yyyy"),  # 3 + 4, 3 + 5
        pair("zzzzzzzz", "x", "y"),  # 10 + 2
        pair("z", "xxxxx", "xxxxy"),  # 3 + 6, the same up to the last letter
    )

    @pytest.fixture
    def letters(self, tiny_tokenizer):
        for letter in "xyz":
            ids = tiny_tokenizer(letter * 6, add_special_tokens=False)["input_ids"]
            assert len(ids) == 6, "no merges among these letters"
        return tiny_tokenizer

    def test_drop_takes_both_sides(self, letters):
        rows = [*self.rows, pair("z", "x", "y")]
        examples, counts = prepare(letters, *rows, max_length=7)
        assert len(examples) == 1
        assert counts.dropped["too_long"] == 3
        assert counts.dropped["prompt_too_long"] == 1
        assert counts.dropped_by_side == {
            "too_long:chosen": 1, "too_long:rejected": 1, "too_long:both": 1,
        }  # fmt: skip

    def test_cut_leaves_both_sides_the_same_length_and_no_end(self, letters):
        """max_length 7 leaves 4 tokens; of the first pair 2, all that its shorter side has."""
        examples, counts = prepare(letters, *self.rows, max_length=7, truncation="cut")
        x, y = letters.convert_tokens_to_ids(["x", "y"])
        assert [listed(e)[1:] for e in examples] == [
            ([x, x], [y, y]),
            ([x, x, x], [y, y, y]),
        ]
        assert counts.cut_pairs == 2

    def test_identical_before_and_after_the_cut(self, letters):
        same = pair("z", "xx", "xx")
        _, counts = prepare(letters, *self.rows, same, max_length=7, truncation="cut")
        assert counts.dropped["identical_ids"] == 1
        assert counts.dropped["identical_after_cut"] == 1
        examples, counts = prepare(letters, *self.rows, same, max_length=9, truncation="cut")
        assert counts.dropped["identical_after_cut"] == counts.cut_pairs == 0
        assert len(examples) == 3

    def test_an_answer_that_differs_only_in_its_end_is_identical(self, letters):
        _, counts = prepare(letters, pair(), pair("z", "xx", "xx", ends=("stop", "length")))
        assert counts.dropped["identical_ids"] == 1

    def test_what_fits_exactly_is_whole(self, letters):
        examples, counts = prepare(letters, self.rows[0], max_length=9, truncation="cut")
        assert len(examples[0].chosen) == 6
        with pytest.raises(UserError, match="too long: 1"):
            prepare(letters, self.rows[0], max_length=8)
        cut, counts = prepare(letters, self.rows[0], max_length=8, truncation="cut")
        assert counts.cut_pairs == 1
        assert letters.eos_token_id not in cut[0].chosen

    def test_a_prompt_without_room_is_never_cut(self, letters):
        _, counts = prepare(letters, pair("z"), self.rows[2], max_length=10, truncation="cut")
        assert counts.dropped["prompt_too_long"] == 1

    def test_error_names_number_and_longest(self, letters):
        message = r"4 of 5 pairs exceed tune\.max_length 7; the longest has 12 tokens \(row 3\)"
        rows = [
            *self.rows[:2],
            pair("zzzzzzzz", "x", "y", where="row 3"),
            self.rows[3],
            pair("z", "x", "y"),
        ]
        with pytest.raises(UserError, match=message):
            prepare(letters, *rows, max_length=7, truncation="error")
        examples, _ = prepare(letters, *rows, max_length=12, truncation="error")
        assert len(examples) == 5

    def test_no_pair_left_is_an_error_with_reasons(self, letters):
        with pytest.raises(UserError, match=r"none of 1 pairs.*\n  empty: 1; first row 9"):
            prepare(letters, pair(chosen="", where="row 9"))


class TestReuse:
    rows = (pair("a"), pair("b", "", "x"), pair("c", ends=("length", None)))

    def test_same_key_is_not_tokenised_again(self, chatml, tmp_path):
        first, counts = prepare(chatml, *self.rows, directory=tmp_path / "set", key="k")
        again, same = prepare(chatml, directory=tmp_path / "set", key="k")  # rows are not read
        assert (again.digest, same) == (first.digest, counts)
        assert counts.as_dict() == {
            "pairs": 3,
            "examples": 2,
            "dropped": {
                "refused": 0, "empty": 1, "identical_ids": 0, "prompt_too_long": 0,
                "too_long": 0, "identical_after_cut": 0,
            },
            "dropped_by_side": {"empty:chosen": 1},
            "unusable": {},
            "altered_answers": 0,
            "special_token_answers": 0,
            "assumed_ends": 1,
            "cut_pairs": 0,
        }  # fmt: skip

    def test_in_memory_and_in_a_folder_are_the_same(self, chatml, tmp_path):
        memory, _ = prepare(chatml, *self.rows)
        folder, _ = prepare(chatml, *self.rows, directory=tmp_path / "set", key="k")
        assert memory.digest == folder.digest

    @pytest.mark.parametrize(
        "change",
        [{"key": "other"}, {"max_length": 100}, {"truncation": "cut"}, {"tokenizer": THINKING}],
    )
    def test_anything_else_is_made_again(self, chatml, tiny_tokenizer, tmp_path, change):
        prepare(chatml, *self.rows, directory=tmp_path / "set", key="k")
        change = dict(change)
        tokenizer = chatml
        if "tokenizer" in change:
            tokenizer = variant(tiny_tokenizer, change.pop("tokenizer"))
        given = {"directory": tmp_path / "set", "key": "k", **change}
        examples, _ = prepare(tokenizer, pair("new"), **given)
        assert len(examples) == 1

    def test_an_older_rule_is_made_again(self, chatml, tmp_path, monkeypatch):
        """Rule 1 kept nulls of Arrow in tools and calls."""
        from deltalearn.tune import tokenize as module

        with monkeypatch.context() as patch:
            patch.setattr(module, "RULES", 1)
            prepare(chatml, *self.rows, directory=tmp_path / "set", key="k")
        examples, _ = prepare(chatml, pair("new"), directory=tmp_path / "set", key="k")
        assert len(examples) == 1

    def test_enough_stops_after_a_batch(self, chatml):
        same = [pair(chosen="x", rejected="x")] * 5
        rows = iter([*same, *map(pair, "abcdefgh")])
        examples, counts = prepare_examples(chatml, rows, 99, enough=2, batch=3)
        assert (counts.pairs, len(examples)) == (9, 4)
        assert len(list(rows)) == 4, "no row is read that is not looked at"

    def test_without_a_key_nothing_is_reused(self, chatml, tmp_path):
        prepare(chatml, *self.rows, directory=tmp_path / "set")
        examples, _ = prepare(chatml, self.rows[0], directory=tmp_path / "set")
        assert len(examples) == 1

    @pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy", "meta.json"])
    def test_a_damaged_folder_is_made_again(self, chatml, tmp_path, name):
        first, _ = prepare(chatml, *self.rows, directory=tmp_path / "set", key="k")
        (tmp_path / "set" / name).write_bytes(b"\x93NUMPY")
        again, _ = prepare(chatml, *self.rows, directory=tmp_path / "set", key="k")
        assert again.digest == first.digest

    def test_counts_that_do_not_read_back_are_made_again(self, chatml, tmp_path):
        prepare(chatml, *self.rows, directory=tmp_path / "set", key="k")
        meta = tmp_path / "set" / "meta.json"
        content = json.loads(meta.read_text())
        content["about"]["counts"] = {"gone": 1}
        meta.write_text(json.dumps(content))
        _, counts = prepare(chatml, *self.rows, directory=tmp_path / "set", key="k")
        assert counts.pairs == 3
