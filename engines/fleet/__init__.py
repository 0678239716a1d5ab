"""`deploy.py run`, in this process or in many: one for each GPU, or those of a Ray cluster."""
