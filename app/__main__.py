"""`python -m app`."""

from app.cli.main import leave_after, run

if __name__ == "__main__":
    leave_after(run)
