"""Small tokenizers of 19 words, as models that read and models that write have them."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["a", "zoo", "in", "which", "nothing", "is", "taken", "on", "trust", "and", "all", "can", "fly", "now"]
READS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WRITES = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]


def words(special, size=19):
    names = [*special, *WORDS, *(f"w{n}" for n in range(99))][:size]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token=special[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    if special == READS:
        pieces = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", pieces)
    return tokenizer
