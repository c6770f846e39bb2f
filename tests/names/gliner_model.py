"""A real GLiNER with weights of chance, made here in a second: no package carries one, and hubs are out of reach.

python tests/names/gliner_model.py FOLDER
"""

import sys
import tempfile
from pathlib import Path
from string import ascii_letters, digits, punctuation

import torch
from gliner import GLiNER, GLiNERConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MOST_TOKENS = 512


def make(folder):
    """One token a character, and no more of them than BERT reads, so that texts run against every limit."""
    torch.manual_seed(7)
    signs = [*SPECIAL, *ascii_letters, *digits, *punctuation, *(f"##{sign}" for sign in ascii_letters + digits + punctuation)]
    vocabulary = {sign: number for number, sign in enumerate(signs)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1_000))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    with tempfile.TemporaryDirectory() as encoder:
        BertModel(BertConfig(vocab_size=len(signs), max_position_embeddings=MOST_TOKENS, **sizes)).save_pretrained(encoder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MOST_TOKENS, **names).save_pretrained(encoder)
        model = GLiNER.from_config(GLiNERConfig(model_name=encoder, hidden_size=32, num_rnn_layers=0))
    model.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
