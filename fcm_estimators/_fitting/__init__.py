"""What a fit is made of: split, draws, loss, training, calibration."""
