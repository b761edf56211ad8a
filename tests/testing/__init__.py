"""Tests of trio_subshells.testing: schedules of programs whose bugs are known."""
