"""How pictures are drawn, knowing no measure: series, styles, axes."""
