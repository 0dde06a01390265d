"""The inner problem's solve: the loop over steps, tasks and branches, its end, and what is said where it fails."""
