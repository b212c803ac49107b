"""Explanations of fitted estimators, written into AnnData for scanpy."""
