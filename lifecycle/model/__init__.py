"""The one decoder, in training, evaluation and the decode loop; weights in and out."""
