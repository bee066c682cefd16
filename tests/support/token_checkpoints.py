"""Tiny checkpoints that label tokens, of three families with their kinds of tokenizers."""

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from small_checkpoints import write_network

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {label: n for n, label in enumerate(LABELS)}}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
MAX_TOKENS = 24
SENTENCES = [
    "Angela Merkel met Emmanuel Macron in Paris, near the Seine.",
    "the café of Zoë Kravitz opened   in Reykjavík yesterday",
    "Jean-Luc didn't know that New York is 4,127 miles away!",
    "snowstorms north of Novosibirsk",
]
LONG = " ".join(SENTENCES * 2)
SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
FRAME = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}


def word_piece():
    """BERT's: lower case without accents, and parts of words with ##."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    words = SENTENCES[:2]  # those of the others are unknown, or spelled out in parts
    inner.train_from_iterator(words, trainers.WordPieceTrainer(vocab_size=90, special_tokens=specials()))
    return inner


def byte_level():
    """RoBERTa's: parts of UTF-8, with the space before a word as its first character."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=specials(), initial_alphabet=alphabet)
    inner.train_from_iterator(SENTENCES[:2], trainer)
    return inner


def unigram():
    """DeBERTa's second version: pieces of SentencePiece."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=specials(), unk_token="[UNK]")
    inner.train_from_iterator(SENTENCES[:2], trainer)
    return inner


def specials():
    return list(SPECIAL.values())


FAMILIES = {
    "bert": (tf.BertConfig, word_piece),
    "roberta": (tf.RobertaConfig, byte_level),
    "deberta-v2": (tf.DebertaV2Config, unigram),
}


def write_tokens(directory, family="bert", **fields):
    """Write a checkpoint of this family. `fields`: of its configuration."""
    config_class, make = FAMILIES[family]
    inner = make()
    ids = [(token, inner.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    inner.post_processor = (
        processors.RobertaProcessing(ids[1], ids[0], trim_offsets=True, add_prefix_space=False)
        if family == "roberta"
        else processors.TemplateProcessing(**FRAME, special_tokens=ids)
    )
    names = {f"{key}_token": token for key, token in SPECIAL.items()}
    tf.PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=MAX_TOKENS, **names).save_pretrained(
        directory
    )
    config = config_class(
        vocab_size=inner.get_vocab_size(),
        pad_token_id=inner.token_to_id("[PAD]"),
        max_position_embeddings=MAX_TOKENS + 2,
        **NAMES | SIZES | fields,
    )
    write_network(directory, tf.AutoModelForTokenClassification, config)
    _spread(directory, inner.encode(" ".join(SENTENCES[2:])).ids[: MAX_TOKENS - 2])
    return directory


def _spread(directory, ids):
    """Let every label be some token's best."""
    network = tf.AutoModelForTokenClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        network.classifier.weight *= 4
        network.classifier.bias -= network(torch.tensor([ids])).logits[0].mean(0)
    network.save_pretrained(directory)
