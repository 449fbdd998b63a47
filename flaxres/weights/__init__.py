"""Reading and writing weights in the form that torchvision and timm use."""
