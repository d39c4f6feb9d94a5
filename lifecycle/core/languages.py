"""What is known of languages; their names are those of fastText's lid.176, ISO 639 codes."""

WITHOUT_BLANKS = frozenset(("bo", "dz", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh"))  # between words
