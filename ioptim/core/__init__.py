"""The contracts: what a step, a runtime, a task, an artifact and a gate are. No library is named here."""
