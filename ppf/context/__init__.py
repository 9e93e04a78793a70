"""What the stages share: the loaded model, names of artefacts, plans, and policy files."""
