"""A SentencePiece model written as a `tokenizer.json`, so that tools without SentencePiece read the same vocabulary.

What must hold: both files give the same ids (a test compares them on text neither was trained on). SentencePiece's
BPE joins the two neighbours whose union has the best score; here every way to form a piece from two others becomes a
merge, in the order of the pieces' scores.
"""

from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from lifecycle.core.files import write_text

SPACE = "\u2581"


def write_tokenizer_json(
    processor: SentencePieceProcessor, model_type: str, special_ids: dict[str, int], path: Path
) -> None:
    """Writes a model that was trained without normalisation and without dummy prefix."""
    ids = list(range(processor.vocab_size()))
    pieces: list[str] = processor.id_to_piece(ids)
    scores: list[float] = processor.get_score(ids)
    unk_id, has_bytes = processor.unk_id(), any(map(processor.is_byte, ids))
    if model_type == "bpe":
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        learned = [i for i in ids if not (processor.is_byte(i) or processor.is_control(i) or i == unk_id)]
        merges = merges_of([(pieces[i], scores[i]) for i in learned])
        model = models.BPE(vocab=vocabulary, merges=merges, unk_token=pieces[unk_id], byte_fallback=has_bytes)
        model.fuse_unk = True  # unknown characters that follow each other are one token
    else:
        model = models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=unk_id, byte_fallback=has_bytes)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special_ids])
    write_text(path, tokenizer.to_str(pretty=True))  # `save` has errors of its own on a full disk


def merges_of(learned: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Every way to form a learned piece from two others, in the order of the pieces' scores, the best first."""
    known = {piece for piece, _ in learned}
    merges: list[tuple[str, str]] = []
    for piece, _ in sorted(learned, key=lambda item: -item[1]):
        halves = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [(left, right) for left, right in halves if left in known and right in known]
    return merges
