"""Where records come from: files and generated scenarios."""
