"""An OpenAI-compatible server: ``requests`` (what is asked and answered) → engine → HTTP."""
