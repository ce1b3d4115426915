"""A corpus: documents cleaned, freed of duplicates, tokenised, in shards that `data.name="prepared"` trains on.

python -m jaxft.prepare --config=configs/prepare.py          the docstrings of the libraries that are installed
python -m jaxft.prepare --config=configs/prepare.py:files --config.source.paths="('crawl/*.jsonl.gz',)"    your texts: a
    document a row of .jsonl or .parquet files (column "text"), or a line, a paragraph or a file of .txt; .gz, .zst too
python -m jaxft.prepare --config=configs/prepare.py:files --config.beam="--runner=DirectRunner"    the same documents by
    an Apache Beam pipeline: a runner and its options; files and folder must lie where all workers have them

Then: python -m jaxft.main --config=configs/gpt_clm.py:prepared --config.data.folder=runs/prepare-files
or, of WordPiece, as the first command trains it (the others: --config.tokenizer.name=wordpiece), a BERT:
      python -m jaxft.main --config=configs/bert_mlm.py:prepared --config.data.folder=runs/prepare

Rules run in the order of `order`; one that is not named there does not run. So personal data are masked where
--config.order="('unicode', 'control', 'whitespace', 'pii', 'length', 'language', 'quality', 'repetition')" asks for it.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "files")


def get_config(arg: str = "") -> ConfigDict:
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r} is not known; variants: {', '.join(filter(None, VARIANTS))}")
    c = ConfigDict()
    c.source = dict(name="dataset", data=dict(name="docstrings", data_dir=""), split="train")
    c.text = dict(column="text", on_bad="skip")
    c.order = ("unicode", "control", "whitespace", "length", "language", "quality", "stop_words", "repetition")
    c.rules = dict(
        unicode=dict(name="unicode", form="NFC", mojibake=True),
        control=dict(name="control", most=0.01),
        whitespace=dict(name="whitespace", runs=False),
        length=dict(name="length", min_characters=40, max_characters=1_000_000),
        language=dict(name="language", keep=("en",), confidence=0.1),
        # Gopher's limits (Rae et al. 2021, table A1), but docstrings are short, and some are lists.
        quality=dict(
            name="quality",
            min_words=8,
            max_words=100_000,
            min_word_length=3.0,
            max_word_length=10.0,
            symbols=0.1,
            bullets=0.9,
            ellipses=0.3,
            letters=0.6,
        ),
        stop_words=dict(
            name="stop_words",
            language="en",
            words=("the", "be", "to", "of", "and", "that", "have", "with"),
            least=1,
        ),
        repetition=dict(
            name="repetition",
            lines=0.3,
            paragraphs=0.3,
            line_characters=0.2,
            paragraph_characters=0.2,
            top=(0.2, 0.18, 0.16),  # of 2-, 3- and 4-grams
            duplicates=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),  # of 5- to 10-grams
        ),
        pii=dict(name="pii", email="<EMAIL>", ip="<IP>", iban="<IBAN>", card="<CARD>", phone="<PHONE>"),
    )
    # Of pairs of similarity 0.8 all but 1 in 13 meet in a bucket, of 0.5 one in 19, which the threshold tells apart.
    c.duplicates = dict(exact=True, near=True, ngram=5, bands=14, rows=8, threshold=0.75)
    c.split = dict(validation=0.05, test=0.05)
    c.tokenizer = dict(hf="", name="wordpiece", vocab=8192, lowercase=True, positions=512, documents=200_000)
    c.work = dict(workers=0, chunk=2**20, shard=2**22)
    c.beam = ""
    if arg == "files":
        files(c)
    return c


def files(c: ConfigDict) -> None:
    """Your own texts, in English and at Gopher's limits."""
    c.source = dict(name="files", paths=("corpus/*.jsonl",), unit="line")
    c.rules.length.update(min_characters=200)
    c.rules.language.update(confidence=0.65)
    c.rules.quality.update(min_words=50, letters=0.8)
    c.rules.stop_words.update(least=2)
    c.split.update(validation=0.005, test=0.005)
    c.tokenizer.update(name="bpe", vocab=32_768, lowercase=False)
    c.work.update(chunk=2**23, shard=2**27)
