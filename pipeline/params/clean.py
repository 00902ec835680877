"""Section `clean`: what is repaired, and what is dropped."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params.section import Count, Fraction, Positive, Section

Words = Annotated[int, Field(ge=1, le=1000)]


class Quality(Section):
    """Gopher's rules (Rae et al. 2021, table A1), each as a bound on one document."""

    enabled: bool
    mean_word_length: tuple[float, float] = Field(description="allowed range, characters")
    max_symbol_ratio: Fraction = Field(description="'#' and '…' per word, at most")
    min_alphabetic_words: Fraction = Field(description="share of words with a letter, at least")
    max_duplicate_lines: Fraction = Field(description="share of lines that repeat an earlier line, at most")
    max_top_ngram: Fraction = Field(description="share of characters in the most common 3-word sequence, at most")


class NearDuplicates(Section):
    """MinHash LSH (Broder 1997): shingles of words, `bands` x `rows` hashes."""

    enabled: bool
    shingle_words: Words = Field(description="words in a row that are compared; each Han character is a word")
    bands: Annotated[int, Field(ge=1, le=256)] = Field(
        description="each is a file that is open while documents are read"
    )
    rows: Annotated[int, Field(ge=1, le=64)] = Field(description="hashes in a band; 4 bytes each a document")
    threshold: Fraction = Field(description="estimated Jaccard similarity from which two documents are one")


class Clean(Section):
    watch: str = Field(description="file or folder whose content DVC watches for this stage: that of decontaminate")
    fix_encoding: bool = Field(description="repair mojibake with ftfy")
    unicode_form: Literal["NFC", "NFKC", "none"]
    tidy_whitespace: Literal["none", "layout", "prose"] = Field(
        description="layout: drop control characters and stray blanks, keep indentation, columns and line breaks; "
        "prose: also one space between words, one blank line at most, no indentation"
    )
    min_chars: Count = Field(description="shorter documents are dropped, characters")
    max_chars: Positive | None = Field(description="longer documents are dropped, characters; null: no bound")
    script: Literal["any", "latin", "han"] = Field(description="script that must prevail in a document")
    min_script_share: Fraction = Field(description="share of letters in that script, at least")
    quality: Quality
    exact_duplicates: bool = Field(description="keep one of each text")
    near_duplicates: NearDuplicates
    decontaminate: list[str] = Field(description="files whose n-grams must not stand in the training set")
    decontaminate_val: bool = Field(description="drop training documents that share an n-gram with val")
    decontaminate_ngram: Words = Field(description="words in a row that count as the same; a Han character is one")
    mask_personal_data: bool = Field(description="replace e-mail addresses, phone numbers and IP addresses")
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(description="share of documents for validation, by hash")
