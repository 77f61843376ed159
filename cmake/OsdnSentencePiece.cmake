# SentencePiece (to come).
