"""How the bundled model was made: data, VAE, judge, text-to-image model, measures. Nothing imports it at run time."""
