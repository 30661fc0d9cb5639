"""What notebooks and the app show: figures, players, the studio, exercises, the gallery."""
