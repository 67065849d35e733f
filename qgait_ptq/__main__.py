"""The command line as a module: ``torchrun --nproc-per-node N -m qgait_ptq`` runs it in several processes."""

from qgait_ptq.cli.main import run

if __name__ == "__main__":
    run()
