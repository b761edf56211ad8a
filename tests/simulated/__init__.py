"""The project's own code in the simulator: scenarios that hold in every order of events."""
