"""What language models say of documents: grades, texts made of them, and how probable they are."""
