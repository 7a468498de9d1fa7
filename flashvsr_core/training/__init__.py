"""How the embedded model `nano` was made: data, degradations, the loop, evaluation and export."""
